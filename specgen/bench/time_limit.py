"""How long a benchmark may take: begin no repeat that would end too late, and know whether that ever mattered."""

from __future__ import annotations

from collections.abc import Callable


class TimeBudget:
    """Counts from `begin`.

    Args:
        limit_seconds: None: no limit.
        wall: Seconds.
    """

    def __init__(self, limit_seconds: float | None, wall: Callable[[], float]) -> None:
        self._limit, self._wall = limit_seconds, wall
        self._started = self._repeats_began = 0.0
        self.is_spent = False
        """Whether something was left undone for want of time."""

    def begin(self) -> None:
        """The run starts now."""
        self._started = self._repeats_began = self._wall()

    def begin_repeats(self) -> None:
        """What comes now is repeated; what came before was not."""
        self._repeats_began = self._wall()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since `begin`, what came before the repeats included."""
        return self._wall() - self._started

    def allows_repeat(self, num_done: int) -> bool:
        """Whether another repeat, as long as those so far, ends in time. The first one is always begun."""
        if self._limit is not None and num_done:
            expected = (self._wall() - self._repeats_began) / num_done
            self.is_spent |= self.elapsed_seconds + expected > self._limit
        return not self.is_spent

    def allows_prompt(self) -> bool:
        """Whether a first repeat may go on with another prompt."""
        self.is_spent |= self._limit is not None and self.elapsed_seconds > self._limit
        return not self.is_spent
