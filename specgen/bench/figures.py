"""Computes the figures of each setting from the raw runs, paired with those of the baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from specgen.bench.results import BenchReport, Difference, Run, Setting
from specgen.core.cost_model import Forecast, MeasuredCosts, forecast
from specgen.core.metrics import Counts, sum_counts
from specgen.runtime.intervals import Interval, PairedTimes, speedup_interval

TextVerdict = Literal["same", "near-tie", "different"]


@dataclass(frozen=True, slots=True)
class SettingFigures:
    """Holds the figures of one setting.

    Args:
        index: Of the setting.
        baseline_index: Of the setting that it is compared with; its own for a baseline.
        counts: Sums over its runs.
        speedup: Seconds per token of the baseline / of this setting, as a ratio of sums over the same prompts and
            repeats; None for the baseline and before the first pair. If two backends are compared, the baseline is
            the target alone on the first one.
        interval: 95 % interval of the speedup; None for fewer than two repeats.
        repeat_ratios: The speedup of each whole repeat.
        prompt_ratios: The speedup on each prompt, by the prompt's index.
        ttft_seconds: Mean over runs.
        output_throughput: Tokens per second of all requests of a server together, from the first request to the last
            answer; None if unknown.
        peak_memory_bytes: Largest of the runs.
        text_verdict: Whether greedy answers were the target's own; None if nothing was compared.
        difference: The first one of the worst kind, if there is one.
        forecast: Speedup predicted from the costs of passes; None if unknown.
    """

    index: int
    baseline_index: int
    setting: Setting
    counts: Counts
    num_runs: int
    speedup: float | None
    interval: Interval | None
    repeat_ratios: tuple[float, ...]
    prompt_ratios: dict[int, float]
    ttft_seconds: float | None
    output_throughput: float | None
    peak_memory_bytes: int | None
    text_verdict: TextVerdict | None
    difference: Difference | None
    forecast: Forecast | None

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.index == self.baseline_index

    @property
    def predicted_speedup(self) -> float | None:
        """Speedup predicted for the rounds of these runs."""
        return None if self.forecast is None else self.forecast.speedup


def figures_by_setting(report: BenchReport, category: str | None = None) -> list[SettingFigures]:
    """Returns the figures of every setting that has runs, in order, on all prompts or on those of a category."""
    selected = {i for i, prompt in enumerate(report.prompts) if category is None or prompt.category == category}
    runs: dict[int, list[Run]] = defaultdict(list)
    for run in report.runs:
        if run.prompt in selected:
            runs[run.setting].append(run)
    return [_figures(report, index, runs[index], runs[report.baseline_of(index)]) for index in sorted(runs)]


def _figures(report: BenchReport, index: int, own: Sequence[Run], baseline: Sequence[Run]) -> SettingFigures:
    setting, counts, baseline_index = report.settings[index], total(own), report.baseline_of(index)
    pairs = _paired(baseline, own) if index != baseline_index else []
    whole = _in_whole_repeats(pairs)
    ratios = [_ratio_of_sums(group) for group in _grouped(whole, lambda run: run.repeat).values()]
    repeats = [ratio for ratio in ratios if ratio is not None]
    ttfts = [run.counts.ttft_seconds for run in own if run.counts.ttft_seconds is not None]
    text_verdict, difference = _compared_text(report, index, {run.prompt for run in own})
    is_timed = index != baseline_index and setting.backend == report.settings[baseline_index].backend
    return SettingFigures(
        index=index,
        baseline_index=baseline_index,
        setting=setting,
        counts=counts,
        num_runs=len(own),
        speedup=_ratio_of_sums(pairs),
        interval=speedup_interval([_timed(pair) for pair in whole]) if len(repeats) > 1 else None,
        repeat_ratios=tuple(repeats),
        prompt_ratios={
            prompt: ratio
            for prompt, group in sorted(_grouped(pairs, lambda run: run.prompt).items())
            if (ratio := _ratio_of_sums(group))
        },
        ttft_seconds=fmean(ttfts) if ttfts else None,
        output_throughput=_throughput(own),
        peak_memory_bytes=max((peak for run in own if (peak := run.peak_memory_bytes) is not None), default=None),
        text_verdict=text_verdict,
        difference=difference,
        forecast=_forecast(counts, total(baseline), report.costs, setting) if is_timed else None,
    )


def total(runs: Iterable[Run]) -> Counts:
    """Returns the sums over runs."""
    return sum_counts(run.counts for run in runs)


def _throughput(runs: Sequence[Run]) -> float | None:
    """Returns the tokens of runs over the time in which at least one of them ran; None if their times are unknown."""
    seconds, end = 0.0, 0.0
    for run in sorted(runs, key=lambda run: run.started_seconds):
        run_end = run.started_seconds + run.total_seconds
        seconds += max(run_end - max(run.started_seconds, end), 0.0)
        end = max(end, run_end)
    return total(runs).num_emitted / seconds if seconds else None


_Pair = tuple[Run, Run]
"""Runs of the same prompt and repeat, the baseline's first."""


def _paired(baseline: Sequence[Run], own: Sequence[Run]) -> list[_Pair]:
    """Pairs runs with those of the baseline; runs without a partner are omitted."""
    partners = {(run.prompt, run.repeat): run for run in baseline}
    return [(partners[key], run) for run in own if (key := (run.prompt, run.repeat)) in partners]


def _grouped(pairs: Sequence[_Pair], key: Callable[[Run], int]) -> dict[int, list[_Pair]]:
    groups: dict[int, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair[0])].append(pair)
    return groups


def _ratio_of_sums(pairs: Sequence[_Pair]) -> float | None:
    """Returns the speedup over pairs: total seconds per token / total seconds per token, not a mean of ratios."""
    baseline, own = (total(runs).tpot_seconds for runs in (zip(*pairs, strict=True) if pairs else ((), ())))
    return baseline / own if baseline and own else None


def _in_whole_repeats(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Returns the pairs of the repeats that ran as many prompts as the longest one."""
    groups = _grouped(pairs, lambda run: run.repeat).values()
    num_prompts = max(map(len, groups), default=0)
    return [pair for group in groups if len(group) == num_prompts for pair in group]


def _timed(pair: _Pair) -> PairedTimes:
    timed = [run.counts.timed for run in pair]
    seconds, tokens = (timed[0].seconds, timed[1].seconds), (timed[0].num_tokens, timed[1].num_tokens)
    return PairedTimes(pair[0].prompt, pair[0].repeat, seconds, tokens)


def _compared_text(report: BenchReport, index: int, prompts: set[int]) -> tuple[TextVerdict | None, Difference | None]:
    was_compared = any((index, prompt) in report.compared for prompt in prompts)
    if report.settings[index].drafter == "none" or not report.config.sampling.is_greedy or not was_compared:
        return None, None
    differences = [d for d in report.differences if d.setting == index and d.prompt in prompts]
    real = [d for d in differences if not d.is_near_tie]
    if real:
        return "different", real[0]
    return ("near-tie", differences[0]) if differences else ("same", None)


def _forecast(counts: Counts, baseline: Counts, costs: MeasuredCosts | None, setting: Setting) -> Forecast | None:
    """Predicts the speedup of a setting's rounds from the costs of passes; None if they were not measured."""
    if costs is None or setting.label not in costs.draft_seconds:
        return None
    around = replace(
        costs.of(setting.label),
        is_per_round=setting.drafter == "lookup",
        round_seconds=counts.other_seconds / counts.timed.num_rounds if counts.num_rounds else 0.0,
        plain_round_seconds=baseline.other_seconds / baseline.timed.num_rounds if baseline.num_rounds else 0.0,
    )
    return forecast(counts, around)
