"""Averages what a draft model's rounds took and yielded."""

from __future__ import annotations

from specgen.core.events import Round
from specgen.engine.draft_length.throughput import LATEST_WEIGHT, RecentRounds

MIN_READ = 8
"""Tokens that the draft model must have read before their cost is known: the cost of drafting hides that of a few."""


class PassesPerToken:
    """Averages the passes of the draft model that a token takes: a draft of text may need several, or none."""

    def __init__(self) -> None:
        self.mean = 1.0
        self._num_tokens = 0

    def observe(self, num_passes: int) -> None:
        """Adds a drafted token. A plain mean at first, then a moving one."""
        self._num_tokens += 1
        self.mean += (num_passes - self.mean) * max(LATEST_WEIGHT, 1 / self._num_tokens)


class DraftModelStats:
    """Averages what recent rounds of the draft model yielded and cost."""

    def __init__(self) -> None:
        self.num_missed = 0
        """Tokens written since the model last drafted: it reads them first."""
        self._num_read = 0
        self._reading_seconds = 0.0
        """Time to read `_num_read` missed tokens: those that the draft model has not read yet."""
        self._rounds = RecentRounds()
        """Counts accepted tokens only."""

    @property
    def seconds_per_missed(self) -> float | None:
        """Cost of reading a missed token; None before several were read."""
        return max(self._reading_seconds / self._num_read, 0.0) if self._num_read >= MIN_READ else None

    def note_reading(self, num_tokens: int, seconds: float) -> None:
        """Notes that the model read tokens, of the prompt or missed ones."""
        self._num_read += num_tokens
        self._reading_seconds += seconds

    def gain(self, rate: float, plain_seconds: float) -> float | None:
        """Returns the accepted tokens of a round, less those lost in its extra time; None before the first round."""
        rounds = self._rounds
        return rounds.tokens - rate * (rounds.seconds - plain_seconds) if rounds.num_rounds else None

    def observe(self, round_: Round, draft_seconds: float, num_accepted: int) -> None:
        """Adds a round of the model.

        Args:
            draft_seconds: Cost of its tokens without reading missed ones.
            num_accepted: Of its tokens.
        """
        if self.num_missed:
            self.note_reading(self.num_missed, round_.draft_seconds - draft_seconds)
        self.num_missed = 0
        self._rounds.observe(num_accepted, draft_seconds + round_.verify_seconds)
