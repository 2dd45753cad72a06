"""Intervals of measured ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import pytest
from scipy import stats

from specgen.runtime.intervals import PairedTimes, ratio_interval, speedup_interval


def test_an_interval_contains_the_geometric_mean() -> None:
    interval = ratio_interval([1.0, 2.0, 4.0])

    assert interval is not None
    assert interval.contains(2.0)
    assert interval.low * interval.high == pytest.approx(4.0)


def test_one_ratio_has_no_interval() -> None:
    assert ratio_interval([1.5]) is None


def pairs_of(baseline: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> list[PairedTimes]:
    """Pairs seconds by prompt and repeat; each answer has ten tokens."""
    return [
        PairedTimes(prompt, repeat, times, (10, 10))
        for prompt, rows in enumerate(zip(baseline, own, strict=True))
        for repeat, times in enumerate(zip(*rows, strict=True))
    ]


def test_a_speedup_has_the_interval_of_a_ratio_in_strata() -> None:
    baseline, own = [[2.0, 2.1], [6.0, 5.9]], [[1.0, 1.02], [2.9, 3.1]]

    interval = speedup_interval(pairs_of(baseline, own))

    # By hand: what each pair adds to the logarithm, by prompt; the repeats' sums differ by less.
    first = (2.0 / 16 - 1.0 / 8.02) - (2.1 / 16 - 1.02 / 8.02)
    second = (6.0 / 16 - 2.9 / 8.02) - (5.9 / 16 - 3.1 / 8.02)
    variances = first**2, second**2  # twice the variance of two values is the square of their difference
    degrees = sum(variances) ** 2 / sum(one**2 for one in variances)
    low, high = stats.t.interval(
        0.95, degrees, loc=math.log(16 / 8.02), scale=max(sum(variances), (first + second) ** 2) ** 0.5
    )
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_longer_answers_of_the_same_speed_are_no_variance() -> None:
    pairs = [PairedTimes(0, repeat, (2.0 * n, 1.0 * n), (10 * n, 10 * n)) for repeat, n in enumerate((1, 2, 3))]

    interval = speedup_interval(pairs)

    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))


def test_one_repeat_has_no_interval_of_a_speedup() -> None:
    assert speedup_interval(pairs_of([[2.0], [3.0]], [[1.0], [1.5]])) is None
    assert speedup_interval([]) is None


@pytest.mark.fast("0.01")
@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_intervals_contain_the_speedup_as_often_as_they_say(drift: float) -> None:
    random = numpy.random.default_rng(0)
    seconds, speedups = random.lognormal(0, 0.5, 12), random.uniform(1, 2.5, 12)
    true = seconds.sum() / (seconds / speedups).sum()
    found = []
    for _ in range(400):
        baseline, own = (
            one[:, None] * numpy.exp(0.04 * random.standard_t(4, (12, 2))) for one in (seconds, seconds / speedups)
        )
        found.append(speedup_interval(pairs_of(baseline, own * numpy.exp(random.normal(0, drift, 2)))))

    assert 0.93 <= sum(one is not None and one.contains(true) for one in found) / 400 <= 0.995
    # The ratios of two repeats alone, whose t value is 12.7, would give 0.2 or more.
    assert numpy.median([one.half_width for one in found if one is not None]) < 0.12
