"""Intervals of measured ratios, with scipy as the oracle."""

from __future__ import annotations

import pytest
from scipy import stats

from specgen.core.confidence import ratio_interval, t_quantile


@pytest.mark.parametrize("num_degrees", [*range(1, 40), 100, 1001])
@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.95, 0.99])
def test_quantiles_are_those_of_students_distribution(num_degrees: int, confidence: float) -> None:
    expected = float(stats.t.ppf((1 + confidence) / 2, num_degrees))

    assert t_quantile(num_degrees, confidence) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_an_interval_contains_the_geometric_mean() -> None:
    interval = ratio_interval([1.0, 2.0, 4.0])

    assert interval is not None
    assert interval.contains(2.0)
    assert interval.low * interval.high == pytest.approx(4.0)


def test_one_ratio_has_no_interval() -> None:
    assert ratio_interval([1.5]) is None
