"""Defines the part of a run that its speeds are made of."""

from __future__ import annotations

from typing import NamedTuple


class TimedRounds(NamedTuple):
    """Sums over timed rounds: those without warm-up, or all rounds if all are warm-up.

    Args:
        num_tokens: Tokens that they emitted.
    """

    num_rounds: int
    num_tokens: int
    seconds: float

    @property
    def tokens_per_round(self) -> float:
        """Tokens of a round that the speedup is computed from; there must be a round."""
        return self.num_tokens / self.num_rounds
