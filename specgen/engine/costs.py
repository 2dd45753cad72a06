"""What a pass over n tokens costs: seconds in, a table out. A table and not a line, since real machines are no line."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

NUM_SAMPLES = 7
"""Samples kept per length. Their median shrugs off a busy neighbour and still follows a growing context."""

HOPED_SLOPE = 0.05
"""Cost of a further token, as a share of one pass, where nothing is known: hopeful, so that lengths get tried."""


class CostTable:
    """Seconds of a target pass over n tokens, v(n), learned from the passes that happen anyway.

    Measured on a CPU in float32, v(2) = 2.1, v(3) = 3.0 and v(4) = 2.1 single passes: small products run as separate
    matrix-vector products, larger ones as one. So neither a line nor any monotone curve will do.

    Args:
        known: Seconds by number of tokens, from an earlier run.
    """

    def __init__(self, known: Mapping[int, float] | None = None) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = dict(known or {})

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add one pass. The first of a length may be a slow one: what was expected then counts as a sample, too."""
        samples = self._samples.get(num_tokens)
        if samples is None:
            expected = self.seconds(num_tokens) if self._medians else seconds
            first = [expected] if expected < seconds else []
            samples = self._samples[num_tokens] = deque(first, maxlen=NUM_SAMPLES)
        samples.append(seconds)
        self._medians[num_tokens] = median(samples)

    @property
    def known(self) -> dict[int, float]:
        """Seconds by number of tokens, measured lengths only."""
        return dict(sorted(self._medians.items()))

    def is_known(self, num_tokens: int) -> bool:
        return num_tokens in self._medians

    def seconds(self, num_tokens: int) -> float:
        """Cost of a pass: measured, or interpolated between measured lengths, or hoped for beyond them."""
        found = self._medians.get(num_tokens)
        if found is not None:
            return found
        below = max((n for n in self._medians if n < num_tokens), default=None)
        above = min((n for n in self._medians if n > num_tokens), default=None)
        if below is None:
            return 0.0 if above is None else self._medians[above]
        if above is None:
            return self._medians[below] + self._slope_behind(below) * (num_tokens - below)
        share = (num_tokens - below) / (above - below)
        return self._medians[below] * (1 - share) + self._medians[above] * share

    def hoped_seconds(self, num_tokens: int) -> float:
        """As `seconds`, but where nothing is known every further token is next to free."""
        longest = max(self._medians, default=0)
        if num_tokens <= longest or not longest:
            return self.seconds(num_tokens)
        return self._medians[longest] + self._medians[min(self._medians)] * HOPED_SLOPE * (num_tokens - longest)

    def _slope_behind(self, longest: int) -> float:
        """Of a token beyond the longest known pass: what a token cost on average up to there."""
        shortest = min(self._medians)
        one = self._medians[shortest]
        mean = (self._medians[longest] - one) / (longest - shortest) if longest > shortest else one
        return max(HOPED_SLOPE * one, mean)


class DraftCost:
    """Seconds of one draft token, from rounds in which the drafter had little else to do."""

    def __init__(self, seconds: float | None = None) -> None:
        self._samples: deque[float] = deque(maxlen=NUM_SAMPLES)
        self._median = seconds

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add one round's draft."""
        self._samples.append(seconds / num_tokens)
        self._median = median(self._samples)

    @property
    def is_known(self) -> bool:
        return self._median is not None

    @property
    def seconds(self) -> float:
        """Cost of a token; 0 while nothing is known, so that drafting gets tried."""
        return self._median or 0.0
