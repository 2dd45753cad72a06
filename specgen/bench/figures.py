"""Computes the figures of each setting from the raw runs, paired with those of the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from specgen.bench.results import BASELINE, BenchReport, Difference, MeasuredCosts, Run, Setting
from specgen.bench.statistics import Interval, ratio_interval
from specgen.core.cost_model import Forecast, forecast
from specgen.core.metrics import Counts

TextVerdict = Literal["same", "near-tie", "different"]


@dataclass(frozen=True, slots=True)
class SettingFigures:
    """Holds the figures of one setting.

    Args:
        index: Of the setting.
        setting: The setting.
        counts: Sums over its runs.
        num_runs: Number of runs.
        speedup: Seconds per token of the baseline / of this setting, as a ratio of sums over the same prompts and
            repeats; None for the baseline and before the first pair. If two backends are compared, the baseline is
            the target alone on the first one.
        interval: 95 % interval over the repeats; None for fewer than two.
        repeat_ratios: The speedup of each whole repeat.
        prompt_ratios: The speedup on each prompt, by the prompt's index.
        ttft_seconds: Mean over runs.
        peak_memory_bytes: Largest of the runs.
        sameness: Whether greedy answers were the target's own; None if nothing was compared.
        difference: The first one of the worst kind, if there is one.
        forecast: Speedup predicted from the costs of passes; None if unknown.
    """

    index: int
    setting: Setting
    counts: Counts
    num_runs: int
    speedup: float | None
    interval: Interval | None
    repeat_ratios: tuple[float, ...]
    prompt_ratios: dict[int, float]
    ttft_seconds: float | None
    peak_memory_bytes: int | None
    text_verdict: TextVerdict | None
    difference: Difference | None
    forecast: Forecast | None

    @property
    def predicted_speedup(self) -> float | None:
        """Speedup predicted for the rounds of these runs."""
        return None if self.forecast is None else self.forecast.speedup


def figures_by_setting(report: BenchReport, category: str | None = None) -> list[SettingFigures]:
    """Returns the figures of every setting that has runs, in order.

    Args:
        report: The benchmark so far.
        category: Restrict to prompts of this category.
    """
    selected = {i for i, prompt in enumerate(report.prompts) if category is None or prompt.category == category}
    runs = [run for run in report.runs if run.prompt in selected]
    baseline = [run for run in runs if run.setting == BASELINE]
    figures = []
    for index, setting in enumerate(report.settings):
        own = [run for run in runs if run.setting == index]
        if own:
            figures.append(_figures(report, index, setting, own, baseline))
    return figures


def _figures(
    report: BenchReport, index: int, setting: Setting, own: Sequence[Run], baseline: Sequence[Run]
) -> SettingFigures:
    counts = total(own)
    pairs = paired(baseline, own) if index != BASELINE else []
    repeats = _whole_repeats(pairs)
    prompts = sorted({run.prompt for run, _ in pairs})
    peaks = [run.peak_memory_bytes for run in own if run.peak_memory_bytes is not None]
    ttfts = [run.counts.ttft_seconds for run in own if run.counts.ttft_seconds is not None]
    text_verdict, difference = _compared_text(report, index, {run.prompt for run in own})
    is_timed = index != BASELINE and setting.backend == report.settings[BASELINE].backend
    return SettingFigures(
        index=index,
        setting=setting,
        counts=counts,
        num_runs=len(own),
        speedup=ratio_of_sums(pairs),
        interval=ratio_interval(repeats),
        repeat_ratios=tuple(repeats),
        prompt_ratios={p: ratio for p in prompts if (ratio := ratio_of_sums([q for q in pairs if q[0].prompt == p]))},
        ttft_seconds=fmean(ttfts) if ttfts else None,
        peak_memory_bytes=max(peaks) if peaks else None,
        text_verdict=text_verdict,
        difference=difference,
        forecast=forecast_of(counts, total(baseline), report.costs, setting) if is_timed else None,
    )


def total(runs: Sequence[Run]) -> Counts:
    """Returns the sums over runs."""
    counts = Counts()
    for run in runs:
        counts.include(run.counts)
    return counts


def paired(baseline: Sequence[Run], own: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs the runs of the same prompt and repeat, the baseline's first; runs without a partner are omitted."""
    partners = {(run.prompt, run.repeat): run for run in baseline}
    return [(partners[key], run) for run in own if (key := (run.prompt, run.repeat)) in partners]


def ratio_of_sums(pairs: Sequence[tuple[Run, Run]]) -> float | None:
    """Returns the speedup over pairs: total seconds per token / total seconds per token, not a mean of ratios."""
    baseline, own = total([run for run, _ in pairs]), total([run for _, run in pairs])
    if not baseline.tpot_seconds or not own.tpot_seconds:
        return None
    return baseline.tpot_seconds / own.tpot_seconds


def _whole_repeats(pairs: Sequence[tuple[Run, Run]]) -> list[float]:
    """Returns the speedup of each repeat that ran as many prompts as the longest one."""
    by_repeat: dict[int, list[tuple[Run, Run]]] = {}
    for pair in pairs:
        by_repeat.setdefault(pair[0].repeat, []).append(pair)
    num_prompts = max((len(group) for group in by_repeat.values()), default=0)
    ratios = [ratio_of_sums(group) for group in by_repeat.values() if len(group) == num_prompts]
    return [ratio for ratio in ratios if ratio is not None]


def _compared_text(report: BenchReport, index: int, prompts: set[int]) -> tuple[TextVerdict | None, Difference | None]:
    if report.settings[index].drafter == "none" or not report.config.sampling.is_greedy:
        return None, None
    if not any((index, prompt) in report.compared for prompt in prompts):
        return None, None
    differences = [d for d in report.differences if d.setting == index and d.prompt in prompts]
    real = [d for d in differences if not d.is_near_tie]
    if real:
        return "different", real[0]
    return ("near-tie", differences[0]) if differences else ("same", None)


def forecast_of(counts: Counts, baseline: Counts, costs: MeasuredCosts | None, setting: Setting) -> Forecast | None:
    """Predicts the speedup of a setting's rounds from the costs of passes; None if they were not measured."""
    if costs is None or setting.label not in costs.draft_seconds:
        return None
    around = replace(
        costs.of(setting.label),
        is_per_round=setting.drafter == "lookup",
        round_seconds=counts.other_seconds / counts.num_rounds if counts.num_rounds else 0.0,
        plain_round_seconds=baseline.other_seconds / baseline.num_rounds if baseline.num_rounds else 0.0,
    )
    return forecast(counts, around)
