"""Which passes are timed."""

from __future__ import annotations

import pytest

from specgen.runtime.pass_costs import timed_lengths


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (1, [1]),
        (4, [1, 2, 3, 4]),
        (9, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 12]),
        (17, [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17]),
        (33, [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 21, 25, 29, 32, 33]),
    ],
)
def test_both_sides_of_each_step_of_the_kernels_are_timed(longest: int, expected: list[int]) -> None:
    assert timed_lengths(longest) == expected
