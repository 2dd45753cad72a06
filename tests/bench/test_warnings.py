from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchReport, Difference
from specgen.bench.warnings import outliers, relative_deviation, warnings_of
from specgen.core.cost_model import MeasuredCosts
from specgen.core.results import LogitGap
from tests.bench.reports import LABEL, counts, report
from tests.render.runs import warmed_up


def codes(made: BenchReport) -> set[str]:
    return {warning.code for warning in warnings_of(made)}


def test_each_doubt_has_its_code() -> None:
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
    doubts = [c.message for c in warnings_of(made) if c.code == "unlike_predicted" and LABEL in c.message]
    assert len(doubts) == is_doubted
    assert all(f"{0.1 / seconds[0]:.2f}x" in message and "1.25x" in message for message in doubts)


def test_more_repeats_are_not_suggested_after_the_time_limit() -> None:
    made = replace(report((0.05,), (0.08,)), is_out_of_time=True)

    messages = {warning.code: warning.message for warning in warnings_of(made)}

    assert "-r 5" not in messages["one_repeat"]
    assert "--quick" in messages["out_of_time"]


def test_a_run_far_from_all_others_is_an_outlier_and_noise_is_not() -> None:
    noise = [0.05, 0.0502, 0.0499, 0.0503, 0.0501]
    assert "outliers" not in codes(report(noise, [0.08] * 5))
    assert "outliers" not in codes(report([0.05, 0.05001, 0.0501], [0.08] * 3))
    made = report(noise, [0.08] * 5)
    slow = next(i for i, run in enumerate(made.runs) if run.setting == 1)
    runs = [*made.runs]
    runs[slow] = replace(runs[slow], counts=counts(0.2, 4, 3))

    assert "outliers" in codes(replace(made, runs=tuple(runs)))


def test_a_run_is_an_outlier_by_its_timed_rounds_only() -> None:
    """Repeats have different numbers of rounds with recordings; a run without other rounds is compared with none."""
    noise = [0.05, 0.0502, 0.0499, 0.0503, 0.0501]
    made = report(noise, [0.08] * 5)
    runs = [*made.runs]
    first, second, third = [i for i, run in enumerate(runs) if run.setting == 1][:3]
    runs[first] = replace(runs[first], counts=warmed_up(counts(0.05, 4, 3, num_rounds=4)))
    runs[second] = replace(runs[second], counts=warmed_up(counts(0.05, num_rounds=0)))
    recording = replace(made, runs=tuple(runs))
    runs[third] = replace(runs[third], counts=warmed_up(counts(0.2, 4, 3)))

    assert "outliers" not in codes(recording)
    assert "outliers" in codes(replace(made, runs=tuple(runs)))


def test_a_reached_time_limit_is_reported_with_the_finished_runs() -> None:
    made = replace(report(), is_complete=False, is_out_of_time=True)
    (warning,) = [w for w in warnings_of(made) if w.code == "out_of_time"]

    assert "18 of 18" in warning.message
    assert codes(made) == {"out_of_time"}


def test_a_distant_value_is_an_outlier_and_noise_is_not() -> None:
    quiet = [1.0, 1.01, 0.99, 1.02, 0.98, 1.005, 0.995, 1.015]

    assert outliers([*quiet, 3.0]) == [8]
    assert outliers([*quiet, 1.05]) == []
    assert outliers([1.0] * 9 + [2.0]) == []


def test_uniform_noise_and_few_values_have_no_outliers() -> None:
    rng = random.Random(1)
    samples = [[rng.uniform(1, 1.2) for _ in range(9)] for _ in range(4000)]

    assert sum(bool(outliers(sample)) for sample in samples) < 40
    assert outliers([1.0, 1.001, 3.0]) == []


def test_spread_is_the_standard_deviation_as_a_fraction_of_the_mean() -> None:
    assert relative_deviation([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)
    assert relative_deviation([1.0]) is None
