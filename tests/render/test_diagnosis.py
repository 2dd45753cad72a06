from __future__ import annotations

from dataclasses import replace

import pytest

from specgen.core.cost_model import Forecast
from specgen.core.doubt import Doubt, find_doubt
from specgen.core.results import RunReport
from specgen.render.diagnosis import Cause, explain_causes, explain_doubt, find_causes, find_remedies
from specgen.render.summary import format_summary, format_turn
from tests.render.runs import counts, info, report, warmed_up


def test_an_expensive_draft_is_the_cause() -> None:
    run = report(counts((5, 5), draft_seconds=0.06, verify_seconds=0.02), 0.01)

    assert find_causes(run) == (Cause.EXPENSIVE_DRAFT,)
    text = explain_causes(find_causes(run), run)
    assert ["8.0" in text, "6.0" in text, "75 %" in text] == [True] * 3
    length, of_draft, none = find_remedies(run)
    assert (length, "quantized" in of_draft, none) == ("-k 2", True, "--draft none")


def test_low_acceptance_is_the_cause() -> None:
    run = report(counts((5, 0), (5, 0), (5, 1)), 0.02)

    assert find_causes(run) == (Cause.LOW_ACCEPTANCE,)
    assert "25 %" in explain_causes(find_causes(run), run)
    length, of_draft, none = find_remedies(run)
    assert (length, "quantized" in of_draft, none) == ("-k 2", False, "--draft none")


def test_both_causes_are_reported() -> None:
    run = report(counts((5, 0), draft_seconds=0.06), 0.02)

    assert find_causes(run) == (Cause.EXPENSIVE_DRAFT, Cause.LOW_ACCEPTANCE)
    text = explain_causes(find_causes(run), run)
    assert "75 %" in text
    assert " 0 %" in text


def test_otherwise_verification_is_the_cause() -> None:
    run = report(counts((5, 4), draft_seconds=0.01, verify_seconds=0.09), 0.015)

    assert find_causes(run) == (Cause.EXPENSIVE_VERIFICATION,)
    text = explain_causes(find_causes(run), run)
    assert "6 tokens" in text
    assert "6.0x" in text


def test_a_draft_of_one_token_can_only_be_switched_off() -> None:
    run = report(counts((1, 1), verify_seconds=0.09), 0.01, info=info("lookup", 1))

    assert find_remedies(run) == ("--draft none",)


@pytest.mark.parametrize(
    "run",
    [
        report(counts((5, 5)), 0.02),
        report(counts((5, 5)), None),
        report(counts((5, 5)), 0.0),
        report(counts(), 0.02),
        report(counts((0, 0)), 0.02, info=info("none", 0)),
    ],
)
def test_a_run_that_gained_or_was_not_measured_has_no_cause(run: RunReport) -> None:
    assert find_causes(run) == ()


@pytest.mark.parametrize("tpot_seconds", [0.005, 0.05])
def test_a_speedup_without_any_draft_is_noise(tpot_seconds: float) -> None:
    run = report(counts((0, 0), (0, 0)), tpot_seconds)

    assert find_doubt(run) is Doubt.NOTHING_DRAFTED
    assert find_causes(run) == find_remedies(run) == ()
    assert explain_doubt(Doubt.NOTHING_DRAFTED, run) in format_summary(run, 200).plain
    assert "x" not in format_turn(run).plain


def test_a_speedup_above_the_tokens_per_round_is_impossible_and_not_shown_after_a_reply() -> None:
    run = report(counts((5, 5), (5, 1)), 1.0)

    assert run.speedup is not None
    assert run.speedup > 10
    assert find_doubt(run) is Doubt.IMPOSSIBLE
    assert "4.00" in explain_doubt(Doubt.IMPOSSIBLE, run)
    assert explain_doubt(Doubt.IMPOSSIBLE, run) in format_summary(run, 200).plain
    assert "x" not in format_turn(run).plain


def test_warm_up_is_no_cause_and_casts_no_doubt() -> None:
    """It yields little: with it, 3.6 times the speed would seem impossible."""
    gained = report(warmed_up(counts((5, 5))), 0.018)
    lost = report(warmed_up(counts((5, 4), verify_seconds=0.09)), 0.015)

    assert gained.speedup == pytest.approx(3.6)
    assert find_doubt(gained) is None
    assert find_causes(lost) == (Cause.EXPENSIVE_VERIFICATION,)
    text = explain_causes(find_causes(lost), lost)
    assert ["6.7" in text, "yields 5.0" in text, "checking 6 tokens" in text, "6.0x" in text] == [True] * 4
    assert find_causes(report(warmed_up(counts()), 0.02)) == ()


def test_a_speedup_far_from_its_prediction_gets_no_advice() -> None:
    slow = report(counts((5, 1)), 0.005, forecast=Forecast(1.3, {}))

    assert find_doubt(slow) is Doubt.UNLIKE_PREDICTED
    assert "--draft none" not in format_summary(slow, 200).plain
    assert find_doubt(report(counts((5, 1)), 0.005, forecast=Forecast(slow.speedup, {}))) is None


def test_auto_that_paused_drafting_gets_no_advice_about_lengths() -> None:
    plain = [(0, 0)] * 40
    run = report(counts((4, 0), *plain), 0.019, info=replace(info(), schedule="auto"))

    assert find_causes(run) == (Cause.DRAFTING_PAUSED,)
    assert not any(remedy.startswith("-k") for remedy in find_remedies(run))


def test_a_ratio_within_the_noise_gets_no_advice() -> None:
    run = report(counts((4, 3), draft_seconds=0.0, verify_seconds=0.02), 0.0049, info=replace(info(), schedule="auto"))

    assert run.speedup is not None
    assert 0.97 <= run.speedup < 1
    assert "--draft none" not in format_summary(run, 200).plain
