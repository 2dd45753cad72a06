"""Things that propose: text so far in, a draft out. Know ids and laws; nothing of text or verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from specgen.core.errors import DraftError, MemoryShortageError, PairError, SpecgenError
from specgen.engine.draft_length.policy import LengthPolicy
from specgen.engine.memory_errors import memory_errors
from specgen.engine.verification import Draft

Failure = DraftError | MemoryShortageError
"""Why a drafter is given up: it broke, or the target needs the memory."""


class Drafter(Protocol):
    """Proposes tokens for the target to check."""

    def feed(self, ids: Sequence[int]) -> None:
        """See the prompt, ahead of the first round; `ids` is a prefix of what `propose` will get.

        Raises:
            DraftError: As in `propose`.
        """

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        """Guess what follows `ids`.

        Args:
            ids: The text so far, never empty.
            limit: Longest draft wanted, at least 1. A shorter or empty one is fine.
            lengths: Asked before each token whether it is wanted.

        Raises:
            DraftError: The drafter is broken; the caller goes on without it.
        """

    def rewind(self, length: int) -> None:
        """Forget what was learned of the text behind its first `length` tokens."""


class NoDrafter:
    """Proposes nothing: the same loop is then plain decoding, the baseline of every comparison."""

    def feed(self, ids: Sequence[int]) -> None:
        """Nothing to see."""

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:  # noqa: ARG002
        return empty_draft()

    def rewind(self, length: int) -> None:
        """Nothing to forget."""


@contextmanager
def draft_errors() -> Iterator[None]:
    """Whatever breaks inside a drafter is a broken draft, not a broken answer.

    Raises:
        DraftError: Anything broke inside the block; the cause is kept.
    """
    try:
        with memory_errors():
            yield
    except DraftError:
        raise
    except Exception as error:
        raise DraftError(_in_a_line(error)) from error


def _in_a_line(error: Exception) -> str:
    """What an error says. Those of Python name no more than a key or a number: their kind is needed with it."""
    kind, said = type(error).__name__, str(error).partition("\n")[0]
    if not said:
        return kind
    return said if isinstance(error, SpecgenError | RuntimeError) else f"{kind}: {said}"


def failure_of(work: Callable[[], object]) -> DraftError | None:
    """Why a drafter could not do what it was told to; None if it could."""
    try:
        with draft_errors():
            work()
    except DraftError as error:
        return error
    return None


def release_after_failure(drafter: Drafter) -> None:
    """Let a drafter give its cache back, of which nobody knows any more what it holds; it may be too broken for it."""
    failure_of(lambda: drafter.rewind(0))


def failure_notice(failure: Failure) -> str:
    """The notice that a drafter was given up."""
    if isinstance(failure, MemoryShortageError):
        return f"{failure.message}: the draft was dropped; the text is not affected"
    return f"the drafter failed and was dropped; the text is not affected: {failure}"


def strict_error(failure: Failure) -> SpecgenError:
    """The error that a failed drafter is under `--strict`; its class, and so the exit code, says what went wrong."""
    cause = failure.__cause__ if isinstance(failure, DraftError) else failure
    kind = type(cause) if isinstance(cause, SpecgenError) else PairError
    return kind(f"the drafter failed: {failure}", "leave out --strict to go on without it")


def empty_draft() -> Draft:
    """A draft of no tokens."""
    return Draft(torch.empty(0, dtype=torch.int64))
