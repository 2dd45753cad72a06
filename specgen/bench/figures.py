"""Raw runs in, the figures of each setting out: sums over runs, paired with the target alone. Pure."""

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
    """What is told about one setting.

    Args:
        index: Of the setting.
        setting: The setting.
        counts: Sums over its runs.
        num_runs: How many.
        speedup: Seconds per token of the target alone / of this setting, as a ratio of sums over the same prompts
            and repeats; None for the target alone and before the first pair. Where two engines are compared, of the
            target alone on the first one.
        interval: 95 % interval over the repeats; None with fewer than two.
        repeat_ratios: The speedup of each whole repeat.
        prompt_ratios: The speedup on each prompt, by the prompt's index.
        ttft_seconds: Mean over runs.
        peak_memory_bytes: Largest of the runs.
        sameness: Whether greedy answers were the target's own; None if nothing was compared.
        difference: The first one of the worst kind, if there is one.
        forecast: What the measured costs of passes predict; None if unknown.
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
        """What the costs predict for the rounds of these runs."""
        return None if self.forecast is None else self.forecast.speedup


def figures_by_setting(report: BenchReport, category: str | None = None) -> list[SettingFigures]:
    """Figures of every setting that has runs, in order.

    Args:
        report: The benchmark so far.
        category: Count only prompts of this one.
    """
    wanted = {i for i, prompt in enumerate(report.prompts) if category is None or prompt.category == category}
    runs = [run for run in report.runs if run.prompt in wanted]
    baseline = [run for run in runs if run.setting == BASELINE]
    made = []
    for index, setting in enumerate(report.settings):
        own = [run for run in runs if run.setting == index]
        if own:
            made.append(_figures(report, index, setting, own, baseline))
    return made


def _figures(
    report: BenchReport, index: int, setting: Setting, own: Sequence[Run], baseline: Sequence[Run]
) -> SettingFigures:
    counts = total(own)
    pairs = paired(baseline, own) if index != BASELINE else []
    repeats = _whole_repeats(pairs)
    prompts = sorted({run.prompt for run, _ in pairs})
    peaks = [run.peak_memory_bytes for run in own if run.peak_memory_bytes is not None]
    waits = [run.counts.ttft_seconds for run in own if run.counts.ttft_seconds is not None]
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
        ttft_seconds=fmean(waits) if waits else None,
        peak_memory_bytes=max(peaks) if peaks else None,
        text_verdict=text_verdict,
        difference=difference,
        forecast=forecast_of(counts, total(baseline), report.costs, setting) if is_timed else None,
    )


def total(runs: Sequence[Run]) -> Counts:
    """Sums over runs."""
    counts = Counts()
    for run in runs:
        counts.include(run.counts)
    return counts


def paired(baseline: Sequence[Run], own: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same prompt in the same repeat, the target alone first; what has no partner is left out."""
    partners = {(run.prompt, run.repeat): run for run in baseline}
    return [(partners[key], run) for run in own if (key := (run.prompt, run.repeat)) in partners]


def ratio_of_sums(pairs: Sequence[tuple[Run, Run]]) -> float | None:
    """Speedup over pairs: total seconds per token / total seconds per token. Never a mean of ratios."""
    alone, with_draft = total([run for run, _ in pairs]), total([run for _, run in pairs])
    if not alone.tpot_seconds or not with_draft.tpot_seconds:
        return None
    return alone.tpot_seconds / with_draft.tpot_seconds


def _whole_repeats(pairs: Sequence[tuple[Run, Run]]) -> list[float]:
    """Speedup of each repeat that ran every prompt that any repeat ran."""
    by_repeat: dict[int, list[tuple[Run, Run]]] = {}
    for pair in pairs:
        by_repeat.setdefault(pair[0].repeat, []).append(pair)
    most = max((len(group) for group in by_repeat.values()), default=0)
    ratios = [ratio_of_sums(group) for group in by_repeat.values() if len(group) == most]
    return [ratio for ratio in ratios if ratio is not None]


def _compared_text(report: BenchReport, index: int, prompts: set[int]) -> tuple[TextVerdict | None, Difference | None]:
    if report.settings[index].drafter == "none" or not report.config.sampling.is_greedy:
        return None, None
    if not any((index, prompt) in report.compared for prompt in prompts):
        return None, None
    found = [d for d in report.differences if d.setting == index and d.prompt in prompts]
    real = [d for d in found if not d.is_near_tie]
    if real:
        return "different", real[0]
    return ("near-tie", found[0]) if found else ("same", None)


def forecast_of(counts: Counts, alone: Counts, costs: MeasuredCosts | None, setting: Setting) -> Forecast | None:
    """Predict the speedup of a setting's rounds from the costs of passes; None if they were not measured."""
    if costs is None or setting.label not in costs.draft_seconds:
        return None
    around = replace(
        costs.of(setting.label),
        is_per_round=setting.drafter == "lookup",
        round_seconds=counts.other_seconds / counts.num_rounds if counts.num_rounds else 0.0,
        plain_round_seconds=alone.other_seconds / alone.num_rounds if alone.num_rounds else 0.0,
    )
    return forecast(counts, around)
