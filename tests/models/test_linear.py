"""Of two products the faster one is taken, on a clock of the test's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specgen.models.linear import MatMul, faster_of


class Stopwatch:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def matmul_of(self, *seconds: float) -> MatMul:
        """Takes these times, the last one ever after."""
        left = list(seconds)

        def run(inputs: Tensor) -> Tensor:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return inputs

        return run


@pytest.mark.parametrize(
    ("usual", "other", "takes_other"),
    [
        ((1.0,), (0.5,), True),
        ((1.0,), (0.97,), False),
        ((1.0,), (2.0,), False),
        # A slow first pass and one disturbed pass decide nothing.
        ((1.0,), (9.0, 0.5), True),
        ((1.0,), (0.5, 7.0, 0.5), True),
        ((0.1, 1.0), (0.5,), True),
    ],
)
def test_the_faster_product_is_taken(usual: tuple[float, ...], other: tuple[float, ...], takes_other: bool) -> None:
    clock = Stopwatch()
    first, second = clock.matmul_of(*usual), clock.matmul_of(*other)

    chosen = faster_of(first, second, torch.zeros(1, 4), clock)

    assert chosen is (second if takes_other else first)
