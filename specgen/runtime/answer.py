"""Defines what an answer is to those who show it: one that this program generates, or one of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from specgen.core.baseline import Baseline
from specgen.core.events import TextEvent
from specgen.core.metrics import Counts
from specgen.core.results import RunInfo, RunReport
from specgen.core.settings import BaselineMethod


class Answer(Protocol):
    """An answer: iterate over its events, then call `report`."""

    counts: Counts
    clock: Callable[[], float]
    is_interrupted: bool

    @property
    def info(self) -> RunInfo:
        """What is known before the first token."""

    @property
    def first_notices(self) -> tuple[str, ...]:
        """What the user should know before the answer."""

    @property
    def notices(self) -> list[str]:
        """What the user should know about this answer."""

    @property
    def has_begun(self) -> bool:
        """Whether any of it has been generated."""

    def interrupt(self) -> None:
        """Ends the answer soon. Safe to call from a signal handler."""

    def __iter__(self) -> Iterator[TextEvent]: ...

    def measure_baseline(self, method: BaselineMethod) -> Baseline | None:
        """Times the target without drafts on the same prompt; None if there is nothing to compare."""

    def report(self) -> RunReport:
        """Returns what is known of the run so far; may be called at any time, also after an error."""

    def finish(self) -> None:
        """Saves what later runs can use, and closes what is open."""
