"""Computes confidence intervals of measured ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Interval:
    """Holds a 95 % confidence interval."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Returns whether the value is in the interval, ends included."""
        return self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        """Half of the width: the figure after ±."""
        return (self.high - self.low) / 2


def ratio_interval(ratios: Sequence[float]) -> Interval | None:
    """Returns the 95 % t interval of the geometric mean of paired ratios; None for fewer than two.

    Ratios of times are multiplicative, so their logarithms are averaged. At n = 5 a bootstrap interval covers too
    little; the t interval on logs keeps its 95 %.
    """
    if len(ratios) < 2:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    half = t_quantile(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(fmean(logs) - half), math.exp(fmean(logs) + half))


def t_quantile(num_degrees: int, confidence: float = 0.95) -> float:
    """Returns the t that `|T|` of Student's distribution is below with this probability, by bisection.

    Args:
        num_degrees: Degrees of freedom, at least 1.
        confidence: From 0 to below 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # pi/2 * 2^-60 is below the rounding of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, num_degrees) < confidence else (low, middle)
    return math.sqrt(num_degrees) * math.tan(low)


def _central_probability(angle: float, num_degrees: int) -> float:
    """Returns P(|T| < sqrt(num_degrees) tan(angle)), by the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    is_odd, cosine = num_degrees % 2, math.cos(angle)
    total, term = 0.0, cosine if is_odd else 1.0
    for power in range(2 + is_odd, num_degrees + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
