"""Tests the figures on hand-made rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specgen.core.baseline import Baseline, speedup
from specgen.core.events import Prefill, Round
from specgen.core.metrics import Counts, sum_counts


def round_(num_drafted: int, num_accepted: int, *, ends: bool = False, num_cut: int = 0) -> Round:
    return Round(0, tuple(range(num_drafted)), num_accepted, None if ends else 9, num_cut, 0.1, 0.2, 0.05)


def observed(*rounds: Round) -> Counts:
    counts = Counts()
    counts.observe_prefill(Prefill(7, 3, 0.5, 0.25))
    for each in rounds:
        counts.observe(each)
    return counts


def test_accepted_rejected_and_discarded_make_up_what_was_drafted() -> None:
    counts = observed(round_(5, 2), round_(5, 5), round_(3, 0))

    assert (counts.num_drafted, counts.num_accepted, counts.num_rejected, counts.num_discarded) == (13, 7, 2, 4)
    assert counts.acceptance_rate == pytest.approx(7 / 13)


def test_alpha_counts_tested_tokens_only() -> None:
    counts = observed(round_(5, 2), round_(5, 5), round_(3, 0))

    assert counts.num_tested == 3 + 5 + 1
    assert counts.alpha == pytest.approx(7 / 9)


def test_tokens_per_round_include_the_targets_own() -> None:
    counts = observed(round_(5, 2), round_(5, 5))

    assert counts.num_emitted == 9
    assert counts.block_efficiency == 4.5
    assert counts.mean_accepted_length == 3.5


def test_a_round_cut_at_an_end_token_counts_nothing_after_it() -> None:
    counts = observed(round_(2, 2, ends=True, num_cut=3))

    assert (counts.num_drafted, counts.num_accepted, counts.num_emitted, counts.num_draft_passes) == (2, 2, 2, 5)
    assert counts.acceptance_rate == 1.0


def test_nothing_drafted_gives_no_rate_rather_than_zero() -> None:
    counts = observed(round_(0, 0), round_(0, 0))

    assert counts.acceptance_rate is None
    assert counts.alpha is None
    assert counts.block_efficiency == 1.0
    assert Counts().tpot_seconds is None


def test_positions_are_counted_where_they_were_reached() -> None:
    counts = observed(round_(3, 1), round_(3, 3), round_(1, 0))

    assert counts.drafted_by_position == [3, 2, 2]
    assert counts.tested_by_position == [3, 2, 1]
    assert counts.accepted_by_position == [2, 1, 1]
    assert counts.acceptance_by_position == [pytest.approx(2 / 3), 0.5, 1.0]
    assert counts.accepted_histogram == [1, 1, 0, 1]


def test_times_are_sums_over_rounds_and_prefill_is_in_the_first_token_only() -> None:
    counts = observed(round_(2, 1), round_(2, 2))

    assert counts.decode_seconds == pytest.approx(0.7)
    assert counts.tpot_seconds == pytest.approx(0.7 / 5)
    assert counts.tokens_per_second == pytest.approx(5 / 0.7)
    assert counts.ttft_seconds == pytest.approx(0.75 + 0.35)
    assert counts.draft_share == pytest.approx(0.2 / 0.7)


def test_rounds_without_a_draft_are_plain_steps() -> None:
    counts = observed(round_(0, 0), round_(2, 1), round_(0, 0, ends=False), round_(0, 0, num_cut=1))

    assert counts.num_plain_rounds == 2
    # Without the time of a drafter that found nothing to propose.
    assert counts.plain_seconds == pytest.approx(0.5)


def test_warm_up_is_in_the_counts_and_the_time_and_not_in_the_speed() -> None:
    warmup = replace(round_(4, 0), draft_seconds=3.0, verify_seconds=6.0, is_warmup=True)
    alone, speculative = observed(round_(0, 0)), observed(warmup, round_(2, 1), warmup, round_(2, 2))

    assert (speculative.num_emitted, speculative.num_drafted, speculative.num_rounds) == (7, 12, 4)
    assert speculative.decode_seconds == pytest.approx(2 * 9.05 + 0.7)
    assert speculative.warmup_seconds == pytest.approx(2 * 9.05)
    assert speculative.tokens_per_second == pytest.approx(5 / 0.7)
    assert speculative.tpot_seconds == pytest.approx(0.7 / 5)
    assert speculative.draft_share == pytest.approx(0.2 / 0.7)
    assert speculative.ttft_seconds == pytest.approx(0.75 + 9.05)
    assert speedup(speculative, Baseline("calibrate", 8, 0.28)) == pytest.approx(2.0)
    both = sum_counts([alone, speculative])
    assert both.tokens_per_second == pytest.approx(6 / 1.05)


def test_an_answer_of_warm_up_only_has_the_speed_of_all_its_rounds() -> None:
    counts = observed(replace(round_(2, 1), is_warmup=True), replace(round_(2, 2), is_warmup=True))

    assert counts.decode_seconds == pytest.approx(0.7)
    assert counts.tokens_per_second == pytest.approx(5 / 0.7)
    assert counts.draft_share is None


def test_a_draft_that_was_recorded_is_not_taken_as_the_cost_of_missed_tokens() -> None:
    counts = observed(round_(0, 0), replace(round_(2, 1), is_warmup=True), round_(0, 0), round_(2, 1))

    assert (counts.num_draft_passes, counts.resumed_seconds) == (0, pytest.approx(0.1))


def test_speedup_is_the_ratio_of_seconds_per_token() -> None:
    counts = observed(round_(2, 1), round_(2, 2))

    assert speedup(counts, Baseline("calibrate", 8, 0.28)) == pytest.approx(2.0)
    assert speedup(counts, None) is None
    assert speedup(Counts(), Baseline("calibrate", 8, 0.28)) is None
