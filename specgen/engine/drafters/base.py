"""Defines drafters: given the tokens so far, propose the next ones. They see ids and distributions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

import torch

from specgen.core.errors import DraftError, MemoryShortageError, PairError, SpecgenError
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.memory_errors import is_shortage, memory_shortage
from specgen.engine.verification import Draft

Failure = DraftError | MemoryShortageError
"""Why a drafter is dropped: it failed, or the target needs its memory."""


class Drafter(Protocol):
    """Proposes tokens for the target to verify."""

    def feed(self, ids: Sequence[int]) -> None:
        """Reads the prompt before the first round; `ids` is a prefix of the next call's `ids`.

        Raises:
            DraftError: As in `propose`.
        """

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        """Proposes the tokens after `ids`.

        Args:
            ids: The text so far, never empty.
            limit: Longest draft, at least 1. A shorter or empty one is fine.
            draft_length: Decides before each token whether to draft it.

        Raises:
            DraftError: The drafter failed; the caller continues without it.
        """

    def rewind(self, length: int) -> None:
        """Forgets the text after its first `length` tokens."""

    def release(self) -> None:
        """Forgets the text and frees the memory it took."""


class NoDrafter:
    """Proposes nothing. The loop is then plain decoding, the baseline of every comparison."""

    def feed(self, ids: Sequence[int]) -> None:
        """Does nothing."""

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:  # noqa: ARG002
        return empty_draft()

    def rewind(self, length: int) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""


class DraftErrors:
    """A block inside a drafter: any exception becomes a `DraftError`. The draft fails, and the answer continues.

    Raises:
        DraftError: An exception occurred inside the block; it is the cause.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, DraftError):
            return
        cause: Exception = error
        if is_shortage(error):
            cause = memory_shortage()
            cause.__cause__ = error
        raise DraftError(_one_line(cause)) from cause


_ERRORS = DraftErrors()


def draft_errors() -> DraftErrors:
    """Returns the block."""
    return _ERRORS


def _one_line(error: Exception) -> str:
    """Describes an error. Python's own often consist of a key or a number only, so their class goes in front."""
    kind, message = type(error).__name__, str(error).partition("\n")[0]
    if not message:
        return kind
    return message if isinstance(error, SpecgenError | RuntimeError) else f"{kind}: {message}"


def failure_of(work: Callable[[], object]) -> DraftError | None:
    """Runs a drafter's method and return its error; None if it succeeded."""
    try:
        with draft_errors():
            work()
    except DraftError as error:
        return error
    return None


def release_after_failure(drafter: Drafter) -> None:
    """Empties the cache of a drafter that failed: its content is unknown now. A second error is ignored."""
    failure_of(drafter.release)


def failure_notice(failure: Failure) -> str:
    """Describes for the user why a drafter was dropped."""
    if isinstance(failure, MemoryShortageError):
        return f"{failure.message}: the draft was dropped; the text is not affected"
    return f"the drafter failed and was dropped; the text is not affected: {failure}"


def strict_error(failure: Failure) -> SpecgenError:
    """Returns the error for a failed drafter under `--strict`. Its class, and so the exit code, is the cause's."""
    cause = failure.__cause__ if isinstance(failure, DraftError) else failure
    kind = type(cause) if isinstance(cause, SpecgenError) else PairError
    return kind(f"the drafter failed: {failure}", "omit --strict to continue without the drafter")


_EMPTY = Draft(torch.empty(0, dtype=torch.int64))


def empty_draft() -> Draft:
    """Returns the draft of no tokens."""
    return _EMPTY
