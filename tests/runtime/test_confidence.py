"""Intervals of measured ratios."""

from __future__ import annotations

import pytest

from specgen.runtime.confidence import ratio_interval


def test_an_interval_contains_the_geometric_mean() -> None:
    interval = ratio_interval([1.0, 2.0, 4.0])

    assert interval is not None
    assert interval.contains(2.0)
    assert interval.low * interval.high == pytest.approx(4.0)


def test_one_ratio_has_no_interval() -> None:
    assert ratio_interval([1.5]) is None
