from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise

import pytest

from specgen.bench.advice import best_speedup, command_line_for, recommend, warnings_of
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import Difference, MeasuredCosts, Setting
from specgen.cli.request import pair_settings
from specgen.core.cost_model import break_even_alpha, expected_speedup
from specgen.core.results import LogitGap
from specgen.core.settings import ModelSettings
from tests.bench.reports import LABEL, SETTINGS, counts, report


def test_the_fastest_setting_is_recommended_with_its_reason() -> None:
    advice = recommend(figures_by_setting(report()))

    assert advice.figures is not None
    assert advice.figures.setting.label == LABEL
    assert advice.reason.startswith("2.00x, the fastest measured: a round costs 2.00 steps of the target alone")
    assert "yields 4.00 tokens (drafting takes 10 % of the time)" in advice.reason


def test_among_equals_the_smaller_draft_is_recommended() -> None:
    advice = recommend(figures_by_setting(report((0.05,) * 3, (0.0502,) * 3)))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "lookup"
    assert "within 1% of the fastest" in advice.reason


def test_a_setting_whose_text_is_wrong_is_never_recommended() -> None:
    wrong = Difference(setting=1, prompt=0, position=3, gap=LogitGap(5.0, 0.1))

    advice = recommend(figures_by_setting(report(differences=[wrong])))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "lookup"


def test_a_near_tie_is_no_reason_against_a_setting() -> None:
    near = Difference(setting=1, prompt=0, position=3, gap=LogitGap(0.05, 0.1))

    advice = recommend(figures_by_setting(report(differences=[near])))

    assert advice.figures is not None
    assert advice.figures.setting.label == LABEL


@pytest.mark.parametrize(
    ("model_seconds", "why"),
    [
        ((0.11, 0.11, 0.11), "0.91x"),
        ((0.07, 0.12, 0.09), "95 % interval"),
        ((0.099,), "1.01x"),
    ],
)
def test_do_not_speculate_where_it_may_not_pay(model_seconds: tuple[float, ...], why: str) -> None:
    made = report(model_seconds, (0.2,) * len(model_seconds))

    advice = recommend(figures_by_setting(made))

    assert advice.figures is None
    assert why in advice.reason


def test_the_speedup_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    figures = figures_by_setting(report((0.025, 0.1), (0.2, 0.2)))[1]

    assert figures.repeat_ratios == pytest.approx((4.0, 1.0))
    assert figures.speedup == pytest.approx(1.6)


def test_runs_without_a_partner_count_for_no_ratio() -> None:
    whole = report()
    torn = replace(whole, runs=tuple(r for r in whole.runs if not (r.setting == 0 and r.repeat == 2)))

    assert figures_by_setting(torn)[1].repeat_ratios == pytest.approx((2.0, 2.0))
    assert figures_by_setting(torn)[1].num_runs == 6


def codes(made: object) -> set[str]:
    return {caution.code for caution in warnings_of(made)}  # type: ignore[arg-type]


def test_doubts_are_told() -> None:
    different = Difference(setting=1, prompt=0, position=3, gap=LogitGap(5.0, 0.1))

    assert codes(report()) == set()
    assert codes(report((0.05,), (0.08,))) == {"one_repeat"}
    assert "spans_one" in codes(report((0.07, 0.12, 0.1)))
    assert "wide_interval" in codes(report((0.05, 0.06, 0.055)))
    assert codes(report(differences=[different])) == {"different"}
    assert codes(report((0.03,) * 3)) == {"unlike_predicted"}
    assert codes(replace(report(), is_complete=False)) == {"incomplete"}


@pytest.mark.parametrize(
    ("seconds", "is_doubted"), [((0.105,), True), ((0.105,) * 2, False), ((0.088,), False), ((0.08,), False)]
)
def test_one_repeat_that_loses_where_the_costs_predict_a_gain_is_doubted(
    seconds: tuple[float, ...], is_doubted: bool
) -> None:
    costs = MeasuredCosts({1: 0.1, 2: 0.2, 3: 0.22, 4: 0.24, 5: 0.26}, {LABEL: 0.015, "lookup": 1.0})
    made = replace(report(seconds, (0.2,) * len(seconds)), costs=costs)

    assert figures_by_setting(made)[1].predicted_speedup == pytest.approx(1.25)
    doubted = [c.message for c in warnings_of(made) if c.code == "unlike_predicted" and LABEL in c.message]
    assert [f"{0.1 / seconds[0]:.2f}x where the costs of passes predict 1.25x" in m for m in doubted] == [
        True
    ] * is_doubted


def test_one_repeat_is_called_so_beside_what_follows_from_it() -> None:
    assert recommend(figures_by_setting(report((0.05,), (0.08,)))).reason.startswith("2.00x in one repeat, the fastest")
    assert "is 0.91x in one repeat: " in recommend(figures_by_setting(report((0.11,), (0.2,)))).reason


def test_where_the_time_ran_out_more_repeats_are_not_asked_for() -> None:
    made = replace(report((0.05,), (0.08,)), is_out_of_time=True)

    told = {caution.code: caution.message for caution in warnings_of(made)}

    assert "-r 5" not in told["one_repeat"]
    assert told["out_of_time"].endswith("leave --quick out")


def test_one_run_far_from_all_others_is_told_and_ordinary_noise_is_not() -> None:
    noise = [0.05, 0.0502, 0.0499, 0.0503, 0.0501]
    assert "outliers" not in codes(report(noise, [0.08] * 5))
    assert "outliers" not in codes(report([0.05, 0.05001, 0.0501], [0.08] * 3))
    made = report(noise, [0.08] * 5)
    slow = next(i for i, run in enumerate(made.runs) if run.setting == 1)
    runs = [*made.runs]
    runs[slow] = replace(runs[slow], counts=counts(0.2, 4, 3))

    assert "outliers" in codes(replace(made, runs=tuple(runs)))


def test_time_that_ran_out_is_told_with_what_was_measured() -> None:
    made = replace(report(), is_complete=False, is_out_of_time=True)
    (told,) = [c for c in warnings_of(made) if c.code == "out_of_time"]

    assert "18 of 18 runs" in told.message
    assert codes(made) == {"out_of_time"}


def test_a_recommended_setting_is_surely_faster_itself() -> None:
    # The model's draft is larger and surely faster; lookup is as fast in sum, and nobody knows.
    advice = recommend(figures_by_setting(report((0.05,) * 3, (0.02, 0.11, 0.02))))

    assert advice.figures is not None
    assert advice.figures.setting.drafter == "model"


def test_a_fast_and_wrong_text_keeps_no_limit() -> None:
    wrong = Difference(setting=1, prompt=0, position=3, gap=LogitGap(5.0, 0.1))

    best = best_speedup(figures_by_setting(report(differences=[wrong])))

    assert best is not None
    assert best.setting.drafter == "lookup"


def test_texts_nobody_compared_are_not_called_the_same() -> None:
    made = replace(report(), compared=frozenset({(2, 0), (2, 1)}))

    assert [f.text_verdict for f in figures_by_setting(made)] == [None, None, "same"]


def test_what_a_model_reads_after_a_draft_that_was_taken_whole_is_in_the_curve() -> None:
    costs = report().costs
    assert costs is not None
    dear = replace(costs, catch_up_seconds={LABEL: 0.01})

    # 0.64: the chance that both are taken.
    seconds = 2 * 0.015 + 0.12 + 0.64 * 0.01
    assert expected_speedup([0.8] * 2, dear.of(LABEL)) == pytest.approx(2.44 * 0.1 / seconds)
    # Lookup pays once for all it proposes.
    assert expected_speedup([0.8] * 2, costs.of("lookup")) == pytest.approx(2.44 * 0.1 / (1e-5 + 0.12))


@pytest.mark.parametrize(
    ("setting", "drafter", "name", "quant"),
    [
        (Setting("model", "Qwen/0.5B:nf4", LABEL, 4, "constant", "nf4"), "model", "Qwen/0.5B", "nf4"),
        (Setting("model+lookup", "Qwen/0.5B+lookup", LABEL, 4), "model+lookup", "Qwen/0.5B", "auto"),
        (Setting("model+lookup", "auto", LABEL, 16, "auto"), "auto", "auto", "auto"),
        (Setting("lookup", "lookup", "lookup", 16, "auto"), "lookup", None, None),
    ],
)
def test_recommended_words_mean_the_setting_to_the_command_line(
    setting: Setting, drafter: str, name: str | None, quant: str | None
) -> None:
    words = dict(pairwise(shlex.split(command_line_for(setting))))

    draft = ModelSettings(words["-d"], quant=words.get("--draft-quant", "auto"))  # type: ignore[arg-type]
    made = pair_settings(ModelSettings(""), draft)

    assert made.drafter == drafter
    assert (None if made.draft is None else made.draft.name) == name
    assert (None if made.draft is None else made.draft.quant) == quant


def test_the_words_of_a_recommendation_can_be_given_to_generate() -> None:
    assert [command_line_for(setting) for setting in SETTINGS] == [
        "-d none",
        "-d Qwen/0.5B --draft-quant nf4 -k 4",
        "-d lookup -k auto",
    ]


def test_the_model_of_the_curve_is_leviathans_with_measured_costs() -> None:
    costs = report().costs
    assert costs is not None

    # 1 + 0.8 + 0.64 tokens for two draft tokens and a pass over three.
    assert expected_speedup([0.8] * 2, costs.of(LABEL)) == pytest.approx(2.44 * 0.1 / (2 * 0.015 + 0.12))
    need = break_even_alpha(2, costs.of(LABEL))
    assert need is not None
    assert expected_speedup([need] * 2, costs.of(LABEL)) == pytest.approx(1.0)


def test_what_can_never_pay_has_no_break_even() -> None:
    costs = report().costs
    assert costs is not None

    assert break_even_alpha(2, replace(costs, draft_seconds={LABEL: 0.2}).of(LABEL)) is None
