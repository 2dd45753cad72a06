"""Chooses the faster of two modules by running both."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from torch import Tensor, nn

NUM_TIMED = 3
WORTHWHILE = 0.95
"""A faster module must take less than this share of the usual one's time to be worth its rounding."""


def faster_of(usual: nn.Module, other: nn.Module, row: Tensor, clock: Callable[[], float] = perf_counter) -> nn.Module:
    """Returns the faster of two modules, measured in turn; `usual` unless the other one is clearly faster.

    Args:
        usual: Returned unless the other one is clearly faster.
        other: The other one.
        row: `[1, inputs]`.
        clock: Returns seconds.
    """
    least = [float("inf"), float("inf")]
    for sample in range(NUM_TIMED + 1):  # the first one warms up
        for index, module in enumerate((usual, other)):
            started = clock()
            module(row)
            if sample:
                least[index] = min(least[index], clock() - started)
    return other if least[1] < WORTHWHILE * least[0] else usual
