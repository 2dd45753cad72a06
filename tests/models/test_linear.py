"""Choosing the faster of two products, with a simulated clock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specgen.models.linear import MatMul, faster_of


class SimulatedClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def matmul_of(self, *seconds: float) -> MatMul:
        """Returns a product that takes these times in turn, then the last one each time."""
        remaining = list(seconds)

        def run(inputs: Tensor) -> Tensor:
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return inputs

        return run


@pytest.mark.parametrize(
    ("usual", "other", "is_other"),
    [
        ((1.0,), (0.5,), True),
        ((1.0,), (0.97,), False),
        ((1.0,), (2.0,), False),
        # A slow first pass or one disturbed pass does not decide.
        ((1.0,), (9.0, 0.5), True),
        ((1.0,), (0.5, 7.0, 0.5), True),
        ((0.1, 1.0), (0.5,), True),
    ],
)
def test_the_faster_product_is_chosen(usual: tuple[float, ...], other: tuple[float, ...], is_other: bool) -> None:
    clock = SimulatedClock()
    first, second = clock.matmul_of(*usual), clock.matmul_of(*other)

    chosen = faster_of(first, second, torch.zeros(1, 4), clock)

    assert chosen is (second if is_other else first)
