from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy import stats

from specgen.bench.figures import figures_by_setting
from specgen.core.cost_model import break_even_alpha, expected_speedup
from specgen.runtime.intervals import ratio_interval
from tests.bench.reports import LABEL, report


def test_the_speedup_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    figures = figures_by_setting(report((0.025, 0.1), (0.2, 0.2)))[1]

    assert figures.repeat_ratios == pytest.approx((4.0, 1.0))
    assert figures.speedup == pytest.approx(1.6)


def test_runs_without_a_partner_are_not_in_the_speedup() -> None:
    whole = report()
    incomplete = replace(whole, runs=tuple(r for r in whole.runs if not (r.setting == 0 and r.repeat == 2)))

    assert figures_by_setting(incomplete)[1].repeat_ratios == pytest.approx((2.0, 2.0))
    assert figures_by_setting(incomplete)[1].num_runs == 6


def test_texts_that_were_not_compared_have_no_verdict() -> None:
    made = replace(report(), compared=frozenset({(2, 0), (2, 1)}))

    assert [f.text_verdict for f in figures_by_setting(made)] == [None, None, "same"]


def test_catching_up_after_a_fully_accepted_draft_is_in_the_curve() -> None:
    costs = report().costs
    assert costs is not None
    costly = replace(costs, reading_seconds={LABEL: {2: 0.01}})

    # 0.64: the probability that both are accepted.
    seconds = 2 * 0.015 + 0.12 + 0.64 * 0.01
    assert expected_speedup([0.8] * 2, costly.of(LABEL)) == pytest.approx(2.44 * 0.1 / seconds)
    # Lookup costs the same for any number of proposed tokens.
    assert expected_speedup([0.8] * 2, costs.of("lookup")) == pytest.approx(2.44 * 0.1 / (1e-5 + 0.12))


def test_the_predicted_curve_is_leviathans_with_measured_costs() -> None:
    costs = report().costs
    assert costs is not None

    # 1 + 0.8 + 0.64 tokens for two draft tokens and a pass over three.
    assert expected_speedup([0.8] * 2, costs.of(LABEL)) == pytest.approx(2.44 * 0.1 / (2 * 0.015 + 0.12))
    need = break_even_alpha(2, costs.of(LABEL))
    assert need is not None
    assert expected_speedup([need] * 2, costs.of(LABEL)) == pytest.approx(1.0)


def test_a_draft_that_cannot_pay_has_no_break_even() -> None:
    costs = report().costs
    assert costs is not None

    assert break_even_alpha(2, replace(costs, draft_seconds={LABEL: 0.2}).of(LABEL)) is None


def test_the_interval_is_the_t_interval_of_the_logarithms() -> None:
    ratios = [1.5, 1.62, 1.58, 1.49, 1.55]

    interval = ratio_interval(ratios)

    logs = [math.log(ratio) for ratio in ratios]
    low, high = stats.t.interval(0.95, 4, loc=sum(logs) / 5, scale=stats.sem(logs))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize("ratios", [[], [1.5]])
def test_one_ratio_has_no_interval(ratios: list[float]) -> None:
    assert ratio_interval(ratios) is None


@pytest.mark.thorough
def test_the_interval_covers_the_true_ratio_in_95_percent_of_samples() -> None:
    rng = random.Random(0)
    samples = [[1.5 * math.exp(rng.gauss(0, 0.03)) for _ in range(5)] for _ in range(4000)]

    covered = sum(interval is not None and interval.contains(1.5) for interval in map(ratio_interval, samples))

    # 0.95, give or take four standard errors.
    assert covered / 4000 == pytest.approx(0.95, abs=0.014)
