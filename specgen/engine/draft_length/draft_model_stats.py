"""Averages what a draft model's rounds took and yielded."""

from __future__ import annotations

from specgen.core.events import Round
from specgen.engine.draft_length.throughput import RecentRounds

MIN_READ = 8
"""Tokens that the draft model must have read before their cost is known: the cost of drafting hides that of a few."""


class PassesPerToken:
    """Averages the passes of the draft model that a draft's first token takes, and each further one.

    A text draft's first token needs one pass more than the others: what follows a token decides where it ends. So a
    draft of several tokens may pay where a single one does not.
    """

    def __init__(self) -> None:
        self._first = RecentRounds()
        self._further = RecentRounds()

    def observe(self, position: int, num_passes: int) -> None:
        """Adds a drafted token."""
        (self._further if position else self._first).observe(1, num_passes)

    def expected(self, length: int, num_tokens: int) -> float:
        """Returns the passes that `num_tokens` more tokens take after a draft of `length` tokens."""
        first = self._first.seconds if self._first.num_rounds else 1.0
        further = self._further.seconds if self._further.num_rounds else max(first - 1, 1.0)
        return num_tokens * further if length else first + (num_tokens - 1) * further


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
