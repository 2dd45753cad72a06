"""Computes confidence intervals of measured ratios, as of a speedup."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance


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


@dataclass(frozen=True, slots=True)
class PairedTimes:
    """Times of two settings on the same prompt in the same repeat, the baseline's first.

    Args:
        prompt: Index of the prompt.
        repeat: Index of the repeat.
        seconds: Of decoding.
        tokens: That were decoded.
    """

    prompt: int
    repeat: int
    seconds: tuple[float, float]
    tokens: tuple[int, int]


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


def speedup_interval(pairs: Sequence[PairedTimes]) -> Interval | None:
    """Returns the 95 % t interval of a speedup: total seconds per token of the baseline / of the other setting.

    The prompts are fixed, and each was measured in every repeat. So the variance is that of a ratio in strata (Cochran
    1977, Sampling Techniques, 6.11): each prompt's own runs say how much it varies, with degrees of freedom after
    Satterthwaite 1946. Two repeats of 24 prompts have about ten of them, where the ratios of whole repeats have one. If
    these differ by more, as on a machine that changes between repeats, their variance is used.

    Args:
        pairs: Each prompt has as many as the others. Fewer than two repeats give no interval.
    """
    num_repeats = len({pair.repeat for pair in pairs})
    if num_repeats < 2:
        return None
    from scipy.special import stdtrit

    parts, logs = _log_parts(pairs)
    by_prompt, by_repeat = defaultdict(list), defaultdict(list)
    for pair, part in zip(pairs, parts, strict=True):
        by_prompt[pair.prompt].append(part)
        by_repeat[pair.repeat].append(part)
    within = [len(values) * variance(values) for values in by_prompt.values()]
    between = num_repeats * variance([sum(values) for values in by_repeat.values()])
    if not any(within):
        return Interval(math.exp(logs), math.exp(logs))
    degrees = (num_repeats - 1) * sum(within) ** 2 / sum(value**2 for value in within)
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(max(sum(within), between))
    return Interval(math.exp(logs - half), math.exp(logs + half))


def _log_parts(pairs: Sequence[PairedTimes]) -> tuple[list[float], float]:
    """Returns what each pair adds to the logarithm of the speedup, in first order, and the logarithm.

    What all pairs add is 0 together: only the differences count.
    """

    def shares(index: int) -> tuple[list[float], float]:
        seconds, tokens = sum(pair.seconds[index] for pair in pairs), sum(pair.tokens[index] for pair in pairs)
        parts = [pair.seconds[index] / seconds - pair.tokens[index] / tokens for pair in pairs]
        return parts, math.log(seconds / tokens)

    (baseline, baseline_log), (own, own_log) = shares(0), shares(1)
    return [one - other for one, other in zip(baseline, own, strict=True)], baseline_log - own_log
