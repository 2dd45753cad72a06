"""Paired timings in, ratios with their uncertainty out. Pure; knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

OUTLIER_SCORE = 14.826
"""Modified z-score from which hyperfine calls a run an outlier: ten standard deviations of a normal sample."""

FEWEST_FOR_OUTLIERS = 9


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether a value lies in it, its ends included."""
        return self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        """What stands behind ±: half of the whole width."""
        return (self.high - self.low) / 2


def ratio_interval(ratios: Sequence[float]) -> Interval | None:
    """95 % t interval of the geometric mean of paired ratios; None for fewer than two.

    Ratios of times are multiplicative, so their logarithms are averaged. At n = 5 a bootstrap interval covers too
    little; the t interval on logs keeps its 95 %.
    """
    if len(ratios) < 2:
        return None
    from scipy.special import stdtrit

    logs = [math.log(ratio) for ratio in ratios]
    half = float(stdtrit(len(logs) - 1, 0.975)) * stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(fmean(logs) - half), math.exp(fmean(logs) + half))


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of values far from the rest, by modified z-score; none of fewer than `FEWEST_FOR_OUTLIERS`.

    Of three values the deviation is the smaller gap, so one in twelve ordinary triples would hold an "outlier".

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers; the limit is hyperfine's.
    """
    if len(values) < FEWEST_FOR_OUTLIERS:
        return []
    middle = median(values)
    deviation = median(abs(value - middle) for value in values)
    if not deviation:
        return []
    # 0.6745 of a normal sample's standard deviation is its median absolute deviation.
    return [i for i, value in enumerate(values) if 0.6745 * abs(value - middle) / deviation > OUTLIER_SCORE]


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation as a share of the mean; None for fewer than two values."""
    return stdev(values) / fmean(values) if len(values) > 1 and fmean(values) else None
