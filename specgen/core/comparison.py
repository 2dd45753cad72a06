"""Compares two texts, as token ids or as characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count
from operator import ne


def first_difference(first: Sequence[object], second: Sequence[object]) -> int | None:
    """Returns the index of the first item that differs, or is missing in one of two texts; None if they are equal."""
    differing = next(compress(count(), map(ne, first, second)), None)
    if differing is None and len(first) != len(second):
        return min(len(first), len(second))
    return differing
