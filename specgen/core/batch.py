"""Defines a request of a batch, its result, and sums over all results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specgen.core.errors import SpecgenError
from specgen.core.metrics import Counts

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One conversation to answer.

    Args:
        id: Unique in the file; identifies the line of the output.
        messages: `role` and `content` of each turn, as they are sent to a server.
        later_turns: Further messages of the user; each is asked after the reply to the one before.
        fields: The other fields of an OpenAI request.
    """

    id: str
    messages: Sequence[Json]
    later_turns: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """An answer.

    Args:
        body: As OpenAI's `chat.completion`; of a server it is the server's own.
        num_tokens: Tokens of the answer; None if a server does not say.
        seconds: Decoding on this machine; of a server its own decoding time, else the time of the request.
        num_drafted: Drafted tokens; None if unknown.
        num_accepted: Accepted ones; None if unknown.
        counts: All figures of an answer made on this machine.
        earlier_replies: Replies to the turns before the last one.
        problem: What in a server's figures contradicts itself; empty if nothing does.
    """

    body: Mapping[str, Any]
    num_tokens: int | None
    seconds: float
    num_drafted: int | None = None
    num_accepted: int | None = None
    counts: Counts | None = None
    earlier_replies: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A request and its answer, or the error in its place."""

    request: BatchRequest
    answer: BatchAnswer | SpecgenError


class Answering(Protocol):
    """Answers requests."""

    def results(self, requests: Sequence[BatchRequest]) -> Iterator[BatchResult]:
        """Yields results as they are ready, in any order, until all are there or `interrupt` was called.

        Raises:
            SpecgenError: No further request can be answered. Nothing that was yielded is lost.
        """

    def interrupt(self) -> None:
        """Ends the iteration soon; unfinished answers are dropped. Safe to call from a signal handler."""


@dataclass(slots=True)
class BatchTotals:
    """Sums over the results of a run.

    Args:
        num_requests: Requests of the whole file.
        num_skipped: Those that an earlier run has answered.
        clock: Returns the time in seconds.
    """

    num_requests: int
    num_skipped: int
    clock: Callable[[], float]
    num_answered: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def observe(self, result: BatchResult) -> None:
        """Adds one result."""
        answer = result.answer
        if isinstance(answer, SpecgenError):
            self.num_failed += 1
            return
        self.num_answered += 1
        self.num_tokens += answer.num_tokens or 0
        self.num_drafted += answer.num_drafted or 0
        self.num_accepted += answer.num_accepted or 0

    @property
    def num_done(self) -> int:
        """Requests with a line in the output, those of earlier runs included."""
        return self.num_skipped + self.num_answered + self.num_failed

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self.clock() - self.started

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of all answers per second of the run, prompts and waiting included."""
        return self.num_tokens / self.seconds if self.num_tokens and self.seconds > 0 else None

    @property
    def acceptance_rate(self) -> float | None:
        """TAR: accepted / drafted, over the answers that report both."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None
