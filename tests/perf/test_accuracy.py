"""The distance between distributions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.perf.accuracy import compare


def test_perplexity_divergence_and_choice_are_those_by_hand() -> None:
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]).log()
    found = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]).log()

    figures = compare(reference, found, torch.tensor([1, 2]))

    assert figures.perplexity == pytest.approx(math.sqrt(2 * 4))
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    second = 0.75 * math.log(1.5) - 2 * 0.125 * math.log(2)
    assert figures.divergence == pytest.approx((first + second) / 2)
    assert figures.same_choice == 0.5
    assert compare(reference, reference, torch.tensor([0, 1])).divergence == 0.0
