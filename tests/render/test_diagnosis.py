from __future__ import annotations

from dataclasses import replace

from specgen.core.cost_model import Forecast
from specgen.render.diagnosis import what_to_try, why_doubtful, why_slower
from specgen.render.summary import format_summary, format_turn
from tests.render.runs import counts, info, report


def test_an_expensive_draft_is_named_with_its_share() -> None:
    run = report(counts((5, 5), draft_seconds=0.06, verify_seconds=0.02), 0.01)

    assert why_slower(run) == (
        "a round takes as long as 8.0 steps of the target alone and yields 6.0 tokens: drafting takes 75 % of the time"
    )
    assert what_to_try(run) == "-k 2, a smaller or quantized draft model, or --draft none"


def test_a_draft_that_is_mostly_wrong_is_named_with_its_rate() -> None:
    run = report(counts((5, 0), (5, 0), (5, 1)), 0.02)

    assert "only 25 % of the tested draft tokens were right" in why_slower(run)
    assert what_to_try(run) == "-k 2, another draft model, or --draft none"


def test_both_causes_are_named() -> None:
    run = report(counts((5, 0), draft_seconds=0.06), 0.02)

    assert "drafting takes 75 % of the time and only 0 % of the tested draft tokens were right" in why_slower(run)


def test_otherwise_verification_is_what_costs() -> None:
    run = report(counts((5, 4), draft_seconds=0.01, verify_seconds=0.09), 0.015)

    assert why_slower(run).endswith("checking 6 tokens at once costs this target 6.0x a single token")


def test_the_shortest_draft_can_only_be_left_out() -> None:
    run = report(counts((1, 1), verify_seconds=0.09), 0.01, info=info("lookup", 1))

    assert what_to_try(run) == "--draft none"


def test_a_run_that_gained_or_was_not_measured_needs_no_reason() -> None:
    assert why_slower(report(counts((5, 5)), 0.02)) == ""
    assert why_slower(report(counts((5, 5)), None)) == ""
    assert why_slower(report(counts((5, 5)), 0.0)) == ""
    assert why_slower(report(counts(), 0.02)) == ""
    assert why_slower(report(counts((0, 0)), 0.02, info=info("none", 0))) == ""


def test_noise_has_a_reason_and_no_cure() -> None:
    run = report(counts((0, 0), (0, 0)), 0.005)

    assert "noise" in why_doubtful(run)
    assert why_slower(run) == ""
    assert what_to_try(run) == ""


def test_noise_is_called_so_in_both_directions() -> None:
    for tpot_seconds in (0.005, 0.05):
        run = report(counts((0, 0), (0, 0)), tpot_seconds)

        assert format_summary(run, 200).plain.endswith(
            "nothing was drafted, so the two differ by the noise of timing only"
        )
        assert "x" not in format_turn(run).plain


def test_a_speedup_beyond_the_tokens_of_a_round_is_called_impossible_and_not_shown_under_a_reply() -> None:
    run = report(counts((5, 5), (5, 1)), 1.0)

    assert run.speedup is not None
    assert run.speedup > 10
    assert "not possible with 4.00 tokens per round" in why_doubtful(run)
    assert "not possible with 4.00 tokens per round" in format_summary(run, 200).plain
    assert "x" not in format_turn(run).plain


def test_a_measurement_far_from_its_prediction_gets_no_advice() -> None:
    slow = report(counts((5, 1)), 0.005, forecast=Forecast(1.3, {}))

    assert "measured and predicted are too far apart" in format_summary(slow, 200).plain
    assert "Try" not in format_summary(slow, 200).plain
    assert why_doubtful(report(counts((5, 1)), 0.005, forecast=Forecast(slow.speedup, {}))) == ""


def test_auto_that_left_drafting_off_says_so_and_offers_no_length() -> None:
    plain = [(0, 0)] * 40
    run = report(counts((4, 0), *plain), 0.019, info=replace(info(), schedule="auto"))

    assert "left off" in why_slower(run)
    assert "-k" not in what_to_try(run)


def test_a_ratio_within_the_noise_is_no_verdict() -> None:
    run = report(counts((0, 0), (0, 0), draft_seconds=0.0), 0.0196, info=replace(info(), schedule="auto"))

    text = str(format_summary(run, 100))

    assert "about as fast as the target alone" in text
    assert "Why" not in text
