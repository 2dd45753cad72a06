"""Computes confidence intervals of ratios, outliers and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

OUTLIER_SCORE = 14.826
"""Modified z-score above which hyperfine reports an outlier: ten standard deviations of a normal sample."""

MIN_SAMPLES_FOR_OUTLIERS = 9


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
    from scipy.special import stdtrit

    logs = [math.log(ratio) for ratio in ratios]
    half = float(stdtrit(len(logs) - 1, 0.975)) * stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(fmean(logs) - half), math.exp(fmean(logs) + half))


def outliers(values: Sequence[float]) -> list[int]:
    """Returns the indices of values far from the rest, by modified z-score.

    None for fewer than `MIN_SAMPLES_FOR_OUTLIERS`: of three values the median absolute deviation is the
    smaller gap, so one in twelve ordinary triples would contain an "outlier".

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers; the limit is hyperfine's.
    """
    if len(values) < MIN_SAMPLES_FOR_OUTLIERS:
        return []
    center = median(values)
    deviation = median(abs(value - center) for value in values)
    if not deviation:
        return []
    # 0.6745 of a normal sample's standard deviation is its median absolute deviation.
    return [i for i, value in enumerate(values) if 0.6745 * abs(value - center) / deviation > OUTLIER_SCORE]


def spread(values: Sequence[float]) -> float | None:
    """Returns the standard deviation as a fraction of the mean; None for fewer than two values."""
    return stdev(values) / fmean(values) if len(values) > 1 and fmean(values) else None
