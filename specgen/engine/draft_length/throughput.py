"""Averages what rounds yield and cost, and derives the present rate of tokens per second."""

from __future__ import annotations

from specgen.core.events import Round
from specgen.engine.draft_length.cost_table import CostTable

LATEST_WEIGHT = 0.05
"""Weight of the latest round in an average over rounds."""


class RecentRounds:
    """Tokens and seconds of a round: a plain mean at first, then a moving one, so the first round's luck fades.

    The rate of a text is a ratio of sums, so tokens and seconds are averaged apart; a mean of ratios would favour
    lucky rounds.
    """

    def __init__(self) -> None:
        self.num_rounds = 0
        self.tokens = self.seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Adds a round."""
        self.num_rounds += 1
        weight = max(LATEST_WEIGHT, 1 / self.num_rounds)
        self.tokens += (num_tokens - self.tokens) * weight
        self.seconds += (seconds - self.seconds) * weight


class Throughput:
    """Tokens per second of the recent rounds, never below plain decoding.

    Args:
        costs: The target's.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._recent = RecentRounds()

    @property
    def rate(self) -> float:
        """Tokens per second; 0 while unknown."""
        plain_seconds = self._costs.seconds(1)
        recent = self._recent.tokens / self._recent.seconds if self._recent.num_rounds else 0.0
        return max(recent, 1 / plain_seconds) if plain_seconds else recent

    def observe(self, round_: Round) -> None:
        """Learns from a round that was not a trial."""
        if round_.seconds:
            self._recent.observe(len(round_.token_ids), round_.seconds)
