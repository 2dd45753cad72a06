"""Sets how many examples hypothesis makes: `SPECGEN_HYPOTHESIS=nightly` makes eighty times as many as usual."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile(
    "nightly", deadline=None, max_examples=5000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("SPECGEN_HYPOTHESIS", "ci"))


def share_of_profile(share: float) -> int:
    """Returns a share of the profile's number of examples, for slow tests."""
    return max(1, round(share * settings().max_examples))
