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
        copy: Copies the states as they are now.
    """

    def __init__(self, copy: Callable[[], State]) -> None:
        self._copy = copy
        self._at_prompts: dict[int, State] = {}
        self._before_draft: dict[int, State] = {}

    def note_prompt(self, length: int) -> None:
        """Copies the states at the end of a prompt, where a later text may branch off."""
        if length not in self._at_prompts:
            state = self._before_draft.get(length)
            kept = list(self._at_prompts.items())[-(MAX_CHECKPOINTS - 1) :]
            self._at_prompts = {**dict(kept), length: self._copy() if state is None else state}

    def note_draft(self, length: int) -> None:
        """Copies the states before a draft."""
        if length and length not in self._known():
            self._before_draft = {}  # frees its memory before the next copy is made
            self._before_draft = {length: self._copy()}

    def best(self, length: int) -> tuple[int, State] | None:
        """Returns the longest known prefix of at most `length` tokens and its states; None if none is known."""
        return max(
            ((n, state) for n, state in self._known().items() if n <= length), default=None, key=lambda it: it[0]
        )

    def forget_after(self, length: int) -> None:
        """Drops the copies of longer prefixes: the text goes on differently there."""
        self._at_prompts = {n: state for n, state in self._at_prompts.items() if n <= length}
        self._before_draft = {n: state for n, state in self._before_draft.items() if n <= length}

    def _known(self) -> dict[int, State]:
        return {**self._at_prompts, **self._before_draft}
