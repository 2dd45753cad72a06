from __future__ import annotations

import pytest
import torch

from specgen.bench.results import Run
from specgen.bench.text_comparison import TextComparison
from specgen.core.comparison import first_difference
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo
from specgen.core.settings import SamplingSettings
from specgen.engine.enumeration import TableModel
from tests.fakes import GREEDY

FLOAT32 = ModelInfo("table", "none", "float32", "cpu")


def run(setting: int, *ids: int) -> Run:
    return Run(setting, 0, 0, Counts(), ids)


def table(gap: float) -> TableModel:
    """Makes a target that prefers token 2 to 3 after token 1, by `gap` logits."""
    logits = torch.zeros(6, 6)
    logits[1, 2], logits[1, 3] = 5.0, 5.0 - gap
    return TableModel(logits)


def test_texts_differ_where_a_token_differs_or_is_missing() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2


def test_another_token_than_a_clear_choice_is_a_real_difference() -> None:
    comparison = TextComparison(table(gap=0.5), FLOAT32, GREEDY)

    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 3), run(2, 4, 1, 2)], [0])

    (difference,) = comparison.differences
    assert (difference.setting, difference.position, difference.is_near_tie) == (1, 2, False)
    assert difference.gap.distance == pytest.approx(0.5, rel=1e-5)


def test_a_choice_within_rounding_is_a_near_tie() -> None:
    comparison = TextComparison(table(gap=1e-6), FLOAT32, GREEDY)

    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 3)], [0])

    assert [one.is_near_tie for one in comparison.differences] == [True]


def test_a_near_tie_does_not_hide_a_real_difference_of_another_repeat() -> None:
    target = table(gap=1e-6)
    target.table[2, 4] = 7.0
    comparison = TextComparison(target, FLOAT32, GREEDY)

    comparison.observe([run(0, 1, 2, 4), run(1, 1, 3, 4)], [0])
    comparison.observe([run(0, 1, 2, 4), run(1, 1, 2, 5)], [0])

    assert [(one.position, one.is_near_tie) for one in comparison.differences] == [(2, False)]


def test_a_near_tie_does_not_hide_another_token_at_the_same_position() -> None:
    comparison = TextComparison(table(gap=1e-6), FLOAT32, GREEDY)

    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 3)], [0])
    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 5)], [0])

    assert [(one.position, one.is_near_tie) for one in comparison.differences] == [(2, False)]


def test_compared_answers_are_recorded() -> None:
    comparison = TextComparison(table(gap=0.5), FLOAT32, GREEDY)

    comparison.observe([run(1, 4, 1, 2)], [0])
    assert comparison.compared == set()
    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 2)], [0])
    assert comparison.compared == {(1, 0)}


def test_sampled_texts_are_not_compared() -> None:
    comparison = TextComparison(table(gap=0.5), FLOAT32, SamplingSettings(temperature=1.0))

    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1, 3)], [0])

    assert comparison.differences == ()


def test_an_answer_that_ended_early_is_a_real_difference() -> None:
    comparison = TextComparison(table(gap=0.0), FLOAT32, GREEDY)

    comparison.observe([run(0, 4, 1, 2), run(1, 4, 1)], [0])

    assert [one.is_near_tie for one in comparison.differences] == [False]
