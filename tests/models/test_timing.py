"""Choosing the faster of two products, with a simulated clock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from specgen.models.timing import faster_of


class SimulatedClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """Takes these times in turn, then the last one each time."""

    def __init__(self, clock: SimulatedClock, seconds: tuple[float, ...]) -> None:
        super().__init__()
        self.clock, self.remaining = clock, list(seconds)

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.now += self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]
        return inputs


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
    first, second = Timed(clock, usual), Timed(clock, other)

    chosen = faster_of(first, second, torch.zeros(1, 4), clock)

    assert chosen is (second if is_other else first)
