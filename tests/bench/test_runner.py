"""Benchmarks of scripted models on a virtual clock: every figure is known in advance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from scipy import stats

from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchSettings
from specgen.bench.runner import Benchmark
from specgen.core.errors import DraftError, PromptError
from specgen.core.settings import SamplingSettings
from specgen.models.cached_model import CachedModel
from specgen.render.bench.columns import method_lines
from specgen.runtime.draft_timing import DraftTimer
from specgen.runtime.pass_costs import PassTimer, TimingOptions
from tests.bench.virtual import VirtualClock, benchmark, expected_rounds, finished, plain_rule
from tests.profiles import thorough_except
from tests.toys import random_toy, save_toy

SMALL = BenchSettings(num_tokens=40, num_repeats=3, num_warmups=1)
SHORT = replace(SMALL, num_tokens=8)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {"target": save_toy(root / "target"), "wrong": save_toy(root / "wrong", fox=" quick")}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    made = VirtualClock()
    made.install(monkeypatch)
    return made


def speculative_seconds(rounds: list[tuple[int, int]]) -> float:
    return sum(0.2 * drafted + 1 + drafted / 10 for drafted, _ in rounds)


@pytest.mark.parametrize("k", thorough_except([1, 5], [1, 2, 5]))
@pytest.mark.fast("5")
def test_every_figure_of_a_scripted_pair_is_exact(toys: dict[str, Path], clock: VirtualClock, k: int) -> None:
    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (k,), SMALL))

    rounds = expected_rounds(40, k)
    alone, drafted = figures_by_setting(report)
    counts = drafted.counts
    num_drafted, num_accepted = sum(d for d, _ in rounds), sum(a for _, a in rounds)
    num_tested = sum(min(a + 1, d) for d, a in rounds)
    assert drafted.num_runs == alone.num_runs == 6
    assert counts.num_emitted == alone.counts.num_emitted == 240
    assert counts.acceptance_rate == pytest.approx(num_accepted / num_drafted)
    assert counts.alpha == pytest.approx(num_accepted / num_tested)
    assert counts.block_efficiency == pytest.approx(40 / len(rounds))
    for position, rate in enumerate(counts.acceptance_by_position):
        tested = [a for d, a in rounds if d > position and a >= position]
        assert rate == pytest.approx(sum(a > position for a in tested) / len(tested))
    assert alone.counts.tokens_per_second == pytest.approx(1.0)
    assert drafted.speedup == pytest.approx(40 / speculative_seconds(rounds))
    assert drafted.interval is not None
    assert (drafted.interval.low, drafted.interval.high) == pytest.approx((drafted.speedup, drafted.speedup))
    assert counts.draft_share == pytest.approx(0.2 * num_drafted / speculative_seconds(rounds))
    assert drafted.text_verdict == "same"
    # The costs of passes follow the clock's rule, so the prediction equals the measurement.
    assert report.costs is not None
    assert report.costs.verify_seconds[k + 1] == pytest.approx(1 + k / 10)
    assert report.costs.draft_seconds[drafted.setting.label] == pytest.approx(0.2)
    assert drafted.predicted_speedup == pytest.approx(drafted.speedup)


@pytest.mark.parametrize("k", thorough_except([3], [1, 3]))
@pytest.mark.thorough
def test_trees_are_measured_next_to_chains_and_predicted_from_their_passes(
    toys: dict[str, Path], clock: VirtualClock, k: int
) -> None:
    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (k,), SMALL, trees=(0, 6)))

    _, chain, tree = figures_by_setting(report)
    assert (chain.setting.tree, tree.setting.tree) == ("off", "6")
    assert chain.counts.nodes_per_tree is None
    assert tree.counts.nodes_per_tree == pytest.approx(6, abs=0.5)
    assert tree.counts.block_efficiency == pytest.approx(chain.counts.block_efficiency)
    assert tree.text_verdict == "same"
    assert report.costs is not None
    assert report.costs.verify_seconds[7] == pytest.approx(1.6)
    for figures in (chain, tree):
        assert figures.predicted_speedup == pytest.approx(figures.speedup)
    assert tree.forecast is not None
    assert not tree.forecast.by_length


@pytest.mark.thorough
def test_passes_are_timed_again_in_a_small_share_of_the_time(
    toys: dict[str, Path], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = []
    sample = PassTimer.sample

    def timed(self: PassTimer, count: int) -> None:
        started = clock.now
        sample(self, count)
        seconds.append(clock.now - started)

    monkeypatch.setattr(PassTimer, "sample", timed)
    finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SMALL, num_prompts=6))

    first, *again = seconds
    assert again
    assert sum(again) < 0.03 * (clock.now - first)


def test_a_clock_that_does_not_advance_gives_costs_without_an_error(toys: dict[str, Path], clock: VirtualClock) -> None:
    clock.rule = lambda *_: 0.0

    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SHORT))

    assert report.costs is not None
    assert set(report.costs.verify_seconds.values()) == {0.0}


def test_a_draft_that_is_slower_after_a_pass_of_the_target_is_predicted(
    toys: dict[str, Path], clock: VirtualClock
) -> None:
    """As on a CPU, whose caches then hold the target's weights."""
    was_target = True

    def rule(clock: VirtualClock, is_target: bool, num_tokens: int) -> float:
        nonlocal was_target
        is_cold, was_target = was_target and not is_target, is_target
        return plain_rule(clock, is_target, num_tokens) + 0.3 * is_cold

    clock.rule = rule
    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (3,), SMALL))

    drafted = figures_by_setting(report)[1]
    assert report.costs is not None
    assert report.costs.cold_seconds == pytest.approx({drafted.setting.label: 0.3})
    assert drafted.predicted_speedup == pytest.approx(drafted.speedup)
    assert drafted.forecast is not None
    assert drafted.forecast.by_length[3] == pytest.approx(drafted.speedup, rel=0.02)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_draft_that_fails_while_it_is_timed_keeps_its_earlier_costs(
    toys: dict[str, Path], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SHORT)
    models = made.configurations[1].models
    timer = PassTimer({"wrong": models}, [1, 2, 3], 4, TimingOptions(clock=clock, wall_clock=clock))
    if not is_first:
        timer.sample(1)

    def failing(*_: object) -> None:
        raise DraftError("planted")

    monkeypatch.setattr(DraftTimer, "sample", failing)
    timer.sample(1)

    assert ("wrong" in timer.costs().draft_seconds) != is_first


@pytest.mark.thorough
def test_a_machine_that_was_slow_at_first_does_not_bend_the_prediction(
    toys: dict[str, Path], clock: VirtualClock
) -> None:
    is_slow = True

    def rule(clock: VirtualClock, is_target: bool, num_tokens: int) -> float:
        return plain_rule(clock, is_target, num_tokens) * (3 if is_slow and is_target and num_tokens == 1 else 1)

    clock.rule = rule
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SMALL, num_prompts=12)
    for step in made:
        is_slow &= step.stage == "reading"

    drafted = figures_by_setting(made.report())[1]
    assert drafted.predicted_speedup == pytest.approx(drafted.speedup)


def price_of_rows(clock: VirtualClock, is_target: bool, num_tokens: int) -> float:
    """Returns v(n) = 1 + (n - 1) / 10 for the target, and 0.2 + n / 16 for the draft."""
    return plain_rule(clock, is_target, num_tokens) if is_target else 0.2 + num_tokens / 16


@pytest.mark.fast("True")
@pytest.mark.parametrize("same_text", [True, False])
def test_drafts_leave_sampled_answers_the_same_if_that_is_asked_for(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_text: bool
) -> None:
    clock = VirtualClock(price_of_rows)
    clock.install(monkeypatch)
    # Random weights: each token has several likely ones.
    target, draft = (save_toy(tmp_path / str(seed), model=random_toy(seed)) for seed in (0, 1))
    sampling = SamplingSettings(1.0, same_text=same_text)

    report = finished(
        benchmark(clock, target, {"other": draft}, (2,), replace(SMALL, num_repeats=1, sampling=sampling))
    )

    alone, drafted = ([run.token_ids for run in report.runs if run.setting == setting] for setting in (0, 1))
    assert (alone == drafted) is same_text
    assert method_lines(report, ascii_only=True)[-1].endswith(", same text" if same_text else "temperature 1")


@pytest.mark.thorough
def test_passes_of_a_draft_over_several_tokens_are_measured_and_predicted(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock(price_of_rows)
    clock.install(monkeypatch)

    unsure = save_toy(tmp_path / "unsure", model=random_toy(0))

    report = finished(benchmark(clock, toys["target"], {"unsure": unsure}, (3,), SMALL, trees=(0, 10)))

    _, chain, tree = figures_by_setting(report)
    assert report.costs is not None
    assert report.costs.tree_pass_seconds[tree.setting.label] == pytest.approx({1: 0.2625, 2: 0.325, 4: 0.45, 8: 0.7})
    assert report.costs.reading_seconds[tree.setting.label] == pytest.approx({1: 0.0, 2: 0.0625, 4: 0.1875, 8: 0.4375})
    assert max(n for n, num in enumerate(tree.counts.tree_pass_histogram) if num) > 1
    assert tree.predicted_speedup == pytest.approx(tree.speedup)
    assert chain.predicted_speedup == pytest.approx(chain.speedup)


@pytest.mark.thorough
def test_a_tree_of_a_draft_without_branches_is_reported_as_failed(toys: dict[str, Path], clock: VirtualClock) -> None:
    report = finished(benchmark(clock, toys["target"], {"lookup": None}, (2,), SMALL, trees=(0, 4)))

    assert [failure.setting for failure in report.failures] == [2]


def test_every_run_reads_its_whole_prompt(toys: dict[str, Path], clock: VirtualClock) -> None:
    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SHORT))

    assert {run.counts.num_reused_tokens for run in report.runs} == {0}
    assert {run.counts.num_prompt_tokens for run in report.runs} == {report.prompts[0].num_tokens}


@pytest.mark.thorough
@pytest.mark.parametrize(("num_repeats", "num_prompts"), [(2, 1), (5, 1), (3, 3)])
def test_a_drift_of_six_percent_over_the_run_biases_the_ratio_by_less_than_one(
    toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch, num_repeats: int, num_prompts: int
) -> None:
    speedups, totals = [], []
    for drift in (0.0, 0.06):
        with monkeypatch.context() as patch:
            clock = VirtualClock()
            total = totals[0] if totals else 1.0
            clock.rule = lambda c, t, n, drift=drift, total=total: plain_rule(c, t, n) * (1 + drift * c.now / total)
            clock.install(patch)
            config = BenchSettings(num_tokens=20, num_repeats=num_repeats, num_warmups=0, times_passes=False)
            drafts = {"wrong": toys["wrong"], "lookup": None}
            report = finished(benchmark(clock, toys["target"], drafts, (2, 5), config, num_prompts=num_prompts))
        totals.append(clock.now)
        speedups.append([item.speedup for item in figures_by_setting(report)[1:]])

    # Measured one setting after the other, the last one would lose 5 %.
    for still, drifting in zip(*speedups, strict=True):
        assert drifting == pytest.approx(still, rel=0.01)
        assert drifting != pytest.approx(still, rel=1e-6)


def test_settings_run_alternately_forwards_and_backwards(toys: dict[str, Path], clock: VirtualClock) -> None:
    config = BenchSettings(num_tokens=4, num_repeats=2, num_warmups=0, times_passes=False)

    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (1, 2), config, num_prompts=2))

    orders = [[run.setting for run in report.runs[i : i + 3]] for i in range(0, 12, 3)]
    assert orders == [[0, 1, 2], [2, 1, 0], [2, 1, 0], [0, 1, 2]]


@pytest.mark.thorough
def test_a_planted_slowdown_of_ten_percent_is_measured(toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = []
    for factor in (1.0, 1.1):
        with monkeypatch.context() as patch:
            clock = VirtualClock(
                lambda c, is_target, n, factor=factor: plain_rule(c, is_target, n) * (factor if n > 1 else 1.0)
            )
            clock.install(patch)
            report = finished(benchmark(clock, toys["target"], {"lookup": None}, (4,), SMALL))
        speedups.append(figures_by_setting(report)[1].speedup)

    assert 1.02 < speedups[0] / speedups[1] < 1.11


def test_an_interrupt_keeps_finished_runs_only(toys: dict[str, Path], clock: VirtualClock) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SMALL)

    for step in made:
        if step.stage == "run" and step.num_done == 5:
            made.interrupt()
    report = made.report()

    assert not report.is_complete
    assert len(report.runs) == 3
    assert {run.counts.num_emitted for run in report.runs} == {40}
    # The second prompt was interrupted before its baseline.
    assert {pair for pair in report.compared if pair[0]} == {(1, 0)}


@pytest.mark.thorough
def test_the_finished_runs_of_an_interrupted_prompt_are_compared(toys: dict[str, Path], clock: VirtualClock) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2, 3), SMALL)

    for step in made:
        if step.stage == "run" and step.num_done == 5:
            made.interrupt()

    assert {pair for pair in made.report().compared if pair[0]} == {(1, 0)}
    assert [item.text_verdict for item in figures_by_setting(made.report())] == [None, "same"]


def test_an_interrupt_in_the_middle_of_a_run_drops_that_run(
    toys: dict[str, Path], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SMALL)
    forward, calls = CachedModel._forward, iter(range(10**6))

    def interrupting(model: CachedModel, *arguments: object) -> object:
        if next(calls) == 400:
            made.interrupt()
        return forward(model, *arguments)

    monkeypatch.setattr(CachedModel, "_forward", interrupting)
    report = finished(made)

    assert report.runs
    assert {run.counts.num_emitted for run in report.runs} == {40}
    assert len(report.runs) < 12


@pytest.mark.parametrize("from_the_start", [True, False])
@pytest.mark.fast("True")
def test_a_failing_draft_is_skipped_and_reported(
    toys: dict[str, Path], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, from_the_start: bool
) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"], "lookup": None}, (2,), SHORT)
    broken, forward = made.configurations[1].models.draft, CachedModel._forward

    def breaking(model: CachedModel, *arguments: object) -> object:
        if model is broken and (from_the_start or made.report().runs):
            raise RuntimeError("planted")
        return forward(model, *arguments)

    monkeypatch.setattr(CachedModel, "_forward", breaking)
    report = finished(made)

    assert [failure.setting for failure in report.failures] == [1]
    assert "planted" in report.failures[0].message
    assert {run.setting for run in report.runs} == {0, 2}
    assert report.costs is not None
    assert "lookup" in report.costs.draft_seconds


def test_the_time_limit_ends_the_benchmark_after_a_whole_prompt(toys: dict[str, Path], clock: VirtualClock) -> None:
    config = BenchSettings(num_tokens=40, num_repeats=9, num_warmups=0, time_limit_seconds=50.0, times_passes=False)

    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), config, num_prompts=5))

    assert len(report.runs) == 2
    assert {run.prompt for run in report.runs} == {0}
    assert (report.is_complete, report.is_out_of_time) == (False, True)


def test_no_repeat_starts_that_would_end_after_the_time_limit(toys: dict[str, Path], clock: VirtualClock) -> None:
    config = BenchSettings(num_tokens=40, num_repeats=9, num_warmups=0, time_limit_seconds=200.0, times_passes=False)

    report = finished(benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), config, num_prompts=1))

    # A repeat takes 40 s and about 30 s.
    assert {run.repeat for run in report.runs} == {0, 1}
    assert clock.now < 200


def test_a_prompt_too_long_for_the_window_is_refused_before_any_run(
    tmp_path: Path, toys: dict[str, Path], clock: VirtualClock
) -> None:
    small = save_toy(tmp_path / "small", num_positions=48)

    with pytest.raises(PromptError, match="48"):
        benchmark(clock, small, {"lookup": None}, (2,), SMALL)


def _steps(made: Benchmark) -> Iterator[str]:
    for step in made:
        yield step.stage


def test_the_report_is_available_after_every_repeat(toys: dict[str, Path], clock: VirtualClock) -> None:
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SHORT)

    sizes = [len(made.report().runs) for stage in _steps(made) if stage == "repeat"]

    assert sizes == [4, 8, 12]


def test_the_interval_is_that_of_the_repeats_as_computed_by_hand(
    toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = (1.0, 1.1, 1.3)
    clock = VirtualClock()
    made = benchmark(clock, toys["target"], {"wrong": toys["wrong"]}, (2,), SMALL)
    # Passes over several tokens get slower from repeat to repeat; the baseline has none.
    clock.rule = lambda c, is_target, n: (
        plain_rule(c, is_target, n) * (factors[min(len(made.report().runs) // 4, 2)] if is_target and n > 1 else 1.0)
    )
    clock.install(monkeypatch)
    drafted = figures_by_setting(finished(made))[1]

    rounds = expected_rounds(40, 2)
    ratios = [40 / sum(0.2 * d + (1 + d / 10) * (f if d else 1) for d, _ in rounds) for f in factors]
    seconds = [40 / ratio for ratio in ratios]
    # Both prompts get slower together, so the repeats differ by more than the prompts' own times would say. Each prompt
    # has two degrees of freedom.
    scale = math.sqrt(3) * float(numpy.std([one / sum(seconds) for one in seconds], ddof=1))
    low, high = stats.t.interval(0.95, 4, loc=math.log(3 * 40 / sum(seconds)), scale=scale)
    assert drafted.repeat_ratios == pytest.approx(ratios)
    assert drafted.interval is not None
    assert (drafted.interval.low, drafted.interval.high) == pytest.approx((math.exp(low), math.exp(high)))
