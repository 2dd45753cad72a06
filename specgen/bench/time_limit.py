"""Limits the time of a benchmark."""

from __future__ import annotations

from collections.abc import Callable


class TimeLimit:
    """Decides whether another repeat or prompt may start, by the time since `start`.

    Args:
        limit_seconds: None: no limit.
        clock: Seconds.
    """

    def __init__(self, limit_seconds: float | None, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit_seconds, clock
        self._start = self._start_of_repeats = 0.0
        self.is_reached = False
        """Whether something was left out for lack of time."""

    def start(self) -> None:
        """Starts the clock."""
        self._start = self._start_of_repeats = self._clock()

    def start_repeats(self) -> None:
        """Marks the start of the repeats; the time before them does not count towards the length of one."""
        self._start_of_repeats = self._clock()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since `start`."""
        return self._clock() - self._start

    def allows_repeat(self, num_done: int) -> bool:
        """Returns whether another repeat, as long as those so far, would end in time; true for the first."""
        if self._limit is not None and num_done:
            expected = (self._clock() - self._start_of_repeats) / num_done
            self.is_reached |= self.elapsed_seconds + expected > self._limit
        return not self.is_reached

    def allows_prompt(self) -> bool:
        """Returns whether the repeat in progress may continue with another prompt."""
        self.is_reached |= self._limit is not None and self.elapsed_seconds > self._limit
        return not self.is_reached
