"""Holds confidence intervals of measured figures."""

from __future__ import annotations

from dataclasses import dataclass


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
