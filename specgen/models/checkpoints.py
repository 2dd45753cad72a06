"""Keeps copies of a text's running states, to which a model can return after rejected tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

MAX_CHECKPOINTS = 4
"""Ends of prompts whose states are kept, for the next turns of a chat."""

MAX_COPIES = MAX_CHECKPOINTS + 1
"""Copies of the states at a time: also that before the draft."""

State = TypeVar("State")


class Checkpoints(Generic[State]):
    """Copies of the running states of one text, by the length of the prefix after which they were made.

    Args:
        copy: Copies the states as they are now. It gets a copy that is needed no longer, or None, and may overwrite it:
            new memory costs more than the copy, since the system clears each page of it.
    """

    def __init__(self, copy: Callable[[State | None], State]) -> None:
        self._copy = copy
        self._at_prompts: dict[int, State] = {}
        self._before_draft: dict[int, State] = {}
        self._spare: State | None = None

    def note_prompt(self, length: int) -> None:
        """Copies the states at the end of a prompt, where a later text may branch off."""
        if length not in self._at_prompts:
            # A copy is in one place only: that before the draft is overwritten by the next draft.
            state = self._before_draft.pop(length, None)
            kept = list(self._at_prompts.items())[-(MAX_CHECKPOINTS - 1) :]
            self._at_prompts = {**dict(kept), length: self._copy(None) if state is None else state}

    def note_draft(self, length: int) -> None:
        """Copies the states before a draft."""
        if length and length not in self._known():
            unneeded = next(iter(self._before_draft.values()), self._spare)
            self._before_draft, self._spare = {}, None
            self._before_draft = {length: self._copy(unneeded)}

    def best(self, length: int) -> tuple[int, State] | None:
        """Returns the longest known prefix of at most `length` tokens and its states; None if none is known."""
        return max(
            ((n, state) for n, state in self._known().items() if n <= length), default=None, key=lambda it: it[0]
        )

    def forget_after(self, length: int) -> None:
        """Drops the copies of longer prefixes: the text goes on differently there."""
        self._at_prompts = {n: state for n, state in self._at_prompts.items() if n <= length}
        for n in [n for n in self._before_draft if n > length]:
            self._spare = self._before_draft.pop(n)

    def _known(self) -> dict[int, State]:
        return {**self._at_prompts, **self._before_draft}
