from __future__ import annotations

import shlex
from itertools import pairwise

import pytest

from specgen.bench.advice import best_speedup, command_line_for, recommend
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import Difference, Setting
from specgen.core.draft_name import DraftName
from specgen.core.results import LogitGap
from specgen.core.settings import ModelSettings, PairSettings
from tests.bench.reports import LABEL, SETTINGS, report


def test_the_fastest_setting_is_recommended_with_its_reason() -> None:
    advice = recommend(figures_by_setting(report()))

    assert advice.figures is not None
    assert advice.figures.setting.label == LABEL
    assert [figure in advice.reason for figure in ("2.00x", "4.00", "10 %")] == [True] * 3


def test_among_equals_the_smaller_draft_is_recommended() -> None:
    advice = recommend(figures_by_setting(report((0.05,) * 3, (0.0502,) * 3)))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "lookup"
    assert LABEL in advice.reason


def test_a_setting_with_a_different_text_is_not_recommended() -> None:
    wrong = Difference(setting=1, prompt=0, position=3, gap=LogitGap(5.0, 0.1))

    advice = recommend(figures_by_setting(report(differences=[wrong])))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "lookup"


def test_a_near_tie_does_not_exclude_a_setting() -> None:
    near = Difference(setting=1, prompt=0, position=3, gap=LogitGap(0.05, 0.1))

    advice = recommend(figures_by_setting(report(differences=[near])))

    assert advice.figures is not None
    assert advice.figures.setting.label == LABEL


@pytest.mark.parametrize(
    ("model_seconds", "figure"),
    [
        ((0.11, 0.11, 0.11), "0.91x"),
        ((0.07, 0.12, 0.09), "1.07x"),
        ((0.099,), "1.01x"),
    ],
)
def test_no_setting_is_recommended_that_may_not_pay(model_seconds: tuple[float, ...], figure: str) -> None:
    made = report(model_seconds, (0.2,) * len(model_seconds))

    advice = recommend(figures_by_setting(made))

    assert advice.figures is None
    assert figure in advice.reason


def test_a_recommended_setting_is_faster_for_certain() -> None:
    # The model is faster for certain; lookup has the same mean speedup, but an interval that contains 1.
    advice = recommend(figures_by_setting(report((0.05,) * 3, (0.02, 0.11, 0.02))))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "model"


def test_limits_ignore_a_setting_with_a_different_text() -> None:
    wrong = Difference(setting=1, prompt=0, position=3, gap=LogitGap(5.0, 0.1))

    best = best_speedup(figures_by_setting(report(differences=[wrong])))

    assert best is not None
    assert best.setting.drafter == "lookup"


@pytest.mark.parametrize(
    ("setting", "drafter", "name", "quant"),
    [
        (Setting("model", "Qwen/0.5B:nf4", LABEL, 4, "constant", "nf4"), "model", "Qwen/0.5B", "nf4"),
        (Setting("model+lookup", "Qwen/0.5B+lookup", LABEL, 4), "model+lookup", "Qwen/0.5B", "auto"),
        (Setting("model+lookup", "auto", LABEL, 16, "auto"), "auto", "", "auto"),
        (Setting("lookup", "lookup", "lookup", 16, "auto"), "lookup", None, None),
    ],
)
def test_recommended_options_select_the_setting_on_the_command_line(
    setting: Setting, drafter: str, name: str | None, quant: str | None
) -> None:
    words = dict(pairwise(shlex.split(command_line_for(setting))))

    like = ModelSettings("", quant=words.get("--draft-quant", "auto"))  # type: ignore[arg-type]
    made = PairSettings(ModelSettings("")).with_draft(DraftName(words["-d"]), like)

    assert made.drafter == drafter
    assert (None if made.draft is None else made.draft.name) == name
    assert (None if made.draft is None else made.draft.quant) == quant


def test_recommended_options_are_those_of_generate() -> None:
    assert [command_line_for(setting) for setting in SETTINGS] == [
        "-d none",
        "-d Qwen/0.5B --draft-quant nf4 -k 4",
        "-d lookup -k auto",
    ]
