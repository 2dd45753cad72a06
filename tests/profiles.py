"""Sets how much the tests try, by the variable `SPECGEN_HYPOTHESIS`.

`daily` is the default. `deep` tries twice as many examples, and all combinations of tests that repeat the same code
with other values; `.ci/run` uses it. `nightly` makes 125 times as many examples as `deep`. In each of them every test
has the same promise and the same oracle.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

Value = TypeVar("Value")
PROFILE = os.environ.get("SPECGEN_HYPOTHESIS", "daily")

settings.register_profile("daily", derandomize=True, deadline=None, max_examples=20, database=None)
settings.register_profile("deep", derandomize=True, deadline=None, max_examples=40, database=None)
settings.register_profile(
    "nightly", deadline=None, max_examples=5000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(PROFILE)


def share_of_profile(share: float) -> int:
    """Returns a share of the profile's number of examples, for slow tests."""
    return max(2, round(share * settings().max_examples))


def by_profile(daily: Value, deep: Value) -> Value:
    """Returns the first value in the profile `daily`, else the second."""
    return daily if PROFILE == "daily" else deep


def thorough_except(kept: Container[Value], values: Iterable[Value]) -> list[Any]:
    """Makes parameters of values, and marks as thorough those that repeat what the kept ones test.

    A tuple is the values of several parameters.
    """
    marks = {True: (), False: pytest.mark.thorough}
    return [pytest.param(*one if isinstance(one, tuple) else (one,), marks=marks[one in kept]) for one in values]


def num_examples(most: int) -> int:
    """Returns a test's own number of examples: `nightly` makes all of them, `deep` two thirds, `daily` a third."""
    return most if PROFILE == "nightly" else by_profile(max(2, most // 3), max(3, 2 * most // 3))
