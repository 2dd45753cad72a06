"""Computes confidence intervals of measured ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from specgen.core.confidence import Interval


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
