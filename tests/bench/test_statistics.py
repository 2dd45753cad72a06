from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from specgen.bench.statistics import outliers, ratio_interval, spread


def test_the_interval_is_the_t_interval_of_the_logarithms() -> None:
    ratios = [1.5, 1.62, 1.58, 1.49, 1.55]

    interval = ratio_interval(ratios)

    logs = [math.log(ratio) for ratio in ratios]
    low, high = stats.t.interval(0.95, 4, loc=sum(logs) / 5, scale=stats.sem(logs))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize("ratios", [[], [1.5]])
def test_one_ratio_has_no_interval(ratios: list[float]) -> None:
    assert ratio_interval(ratios) is None


def test_the_interval_covers_the_true_ratio_in_95_percent_of_samples() -> None:
    rng = random.Random(0)
    samples = [[1.5 * math.exp(rng.gauss(0, 0.03)) for _ in range(5)] for _ in range(4000)]

    covered = sum(interval is not None and interval.contains(1.5) for interval in map(ratio_interval, samples))

    # 0.95, give or take four standard errors.
    assert covered / 4000 == pytest.approx(0.95, abs=0.014)


def test_a_distant_value_is_an_outlier_and_noise_is_not() -> None:
    quiet = [1.0, 1.01, 0.99, 1.02, 0.98, 1.005, 0.995, 1.015]

    assert outliers([*quiet, 3.0]) == [8]
    assert outliers([*quiet, 1.05]) == []
    assert outliers([1.0] * 9 + [2.0]) == []


def test_uniform_noise_and_few_values_have_no_outliers() -> None:
    rng = random.Random(1)
    samples = [[rng.uniform(1, 1.2) for _ in range(9)] for _ in range(4000)]

    assert sum(bool(outliers(sample)) for sample in samples) < 40
    assert outliers([1.0, 1.001, 3.0]) == []


def test_spread_is_the_standard_deviation_as_a_fraction_of_the_mean() -> None:
    assert spread([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)
    assert spread([1.0]) is None
