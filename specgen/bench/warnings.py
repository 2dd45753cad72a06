"""Finds reasons to doubt the figures of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from specgen.bench.figures import SettingFigures, figures_by_setting, total
from specgen.bench.results import BenchReport, Run
from specgen.core.cost_model import is_unlike

NOISY_SPREAD = 0.05
WIDE_INTERVAL = 0.10
SLOW_START = 1.10
MIN_OUTLIER = 0.10
"""On a quiet machine runs differ so little that an outlier may be too close to the others to matter."""
OUTLIER_SCORE = 14.826
"""Modified z-score above which hyperfine reports an outlier: ten standard deviations of a normal sample."""
MIN_SAMPLES_FOR_OUTLIERS = 9
CONTRADICTORY = 1.15
"""A gain and a loss that differ by more than this factor can't both be right."""


@dataclass(frozen=True, slots=True)
class BenchWarning:
    """Holds a reason to doubt a figure.

    Args:
        code: `noisy`, `outliers`, `slow_start`, `spans_one`, `wide_interval`, `one_repeat`, `lengths`, `different`,
            `not_alone`, `merged_chunks`, `different_models`, `retried`, `perfect_acceptance`, `counters_differ`
            (servers),
            `unlike_predicted`, `failed`, `incomplete`, `out_of_time`.
        message: One sentence.
    """

    code: str
    message: str


def warnings_of(report: BenchReport, figures: Sequence[SettingFigures] | None = None) -> list[BenchWarning]:
    """Returns every reason to doubt a figure of the report; `figures` spares computing them again."""
    figures = figures_by_setting(report) if figures is None else figures
    return [
        *(BenchWarning("failed", f"{report.settings[f.setting].name} failed: {f.message}") for f in report.failures),
        *(BenchWarning(code, message) for code, message in report.doubts),
        *_completeness(report),
        *_noise(report),
        *_lengths(report),
        *(warning for item in figures for warning in _about_setting(item, report)),
    ]


def _completeness(report: BenchReport) -> list[BenchWarning]:
    if report.is_complete and not report.is_out_of_time:
        return []
    num_all = len(report.settings) * len(report.prompts) * report.config.num_repeats
    runs = f"{len(report.runs)} of {num_all} runs finished"
    if report.is_out_of_time:
        return [BenchWarning("out_of_time", f"time limit reached: {runs}; omit --quick for a full run")]
    return [BenchWarning("incomplete", f"the benchmark was stopped: {runs}")]


def _lengths(report: BenchReport) -> list[BenchWarning]:
    lengths = {run.counts.num_emitted for run in report.runs}
    if not report.config.stops_at_end or len(lengths) < 2:
        return []
    return [BenchWarning("lengths", f"answers have different lengths, {min(lengths)} to {max(lengths)} tokens")]


def _noise(report: BenchReport) -> list[BenchWarning]:
    """Checks how steady the baselines were, which do the same work in every repeat."""
    warnings = []
    repeats = sorted({run.repeat for run in report.runs})
    if len(repeats) == 1:
        hint = "" if report.is_out_of_time else "; use -r 5"
        warnings.append(BenchWarning("one_repeat", f"one repeat does not show the uncertainty{hint}"))
    for index in sorted({report.baseline_of(run.setting) for run in report.runs}):
        concurrency = report.settings[index].concurrency
        where = f" at concurrency {concurrency}" if concurrency > 1 else ""
        warnings += _unsteady([run for run in report.runs if run.setting == index], repeats, where)
    return warnings


def _unsteady(baseline: Sequence[Run], repeats: Sequence[int], where: str) -> list[BenchWarning]:
    warnings = []
    sums = [total(run for run in baseline if run.repeat == repeat) for repeat in repeats]
    rates = [rate for counts in sums if (rate := counts.tokens_per_second) is not None]
    deviation = relative_deviation(rates)
    if deviation is not None and deviation > NOISY_SPREAD:
        text = (
            f"the baseline{where} varied by {deviation:.0%} between repeats; close other programs, or use more repeats"
        )
        warnings.append(BenchWarning("noisy", text))
    if len(rates) > 2 and min(rates[1:]) > SLOW_START * rates[0]:
        warnings.append(BenchWarning("slow_start", f"the first repeat{where} was slower than all others; use -w 2"))
    return warnings


def _about_setting(figures: SettingFigures, report: BenchReport) -> list[BenchWarning]:
    found = {
        "outliers": _outlying_runs(figures, report),
        **_uncertainty(figures),
        "unlike_predicted": _misprediction(figures),
        "different": _difference(figures, report),
    }
    return [BenchWarning(code, f"{figures.setting.name}: {text}") for code, text in found.items() if text]


def _uncertainty(figures: SettingFigures) -> dict[str, str]:
    interval = figures.interval
    if interval is None:
        return {}
    bounds = f"the interval {interval.low:.2f} to {interval.high:.2f}"
    if interval.contains(1.0):
        return {"spans_one": f"no measurable difference, {bounds} contains 1"}
    if interval.high - interval.low > WIDE_INTERVAL * (figures.speedup or 1):
        return {"wide_interval": f"{bounds} is wide; use more repeats"}
    return {}


def _misprediction(figures: SettingFigures) -> str:
    measured, predicted = figures.speedup, figures.predicted_speedup
    if measured is None or predicted is None:
        return ""
    low, high = sorted((measured, predicted))
    # One is a gain and the other a loss. With several repeats, the interval shows which is right.
    contradicts = figures.interval is None and low < 1 < high and high > CONTRADICTORY * low
    if not contradicts and not is_unlike(measured, predicted):
        return ""
    return f"measured {measured:.2f}x, predicted from pass costs {predicted:.2f}x: one of them was disturbed"


def _difference(figures: SettingFigures, report: BenchReport) -> str:
    difference = figures.difference
    if figures.text_verdict != "different" or difference is None:
        return ""
    gap, unit = difference.gap, figures.setting.position_unit
    why = f"by {gap.distance:.2g} logits where rounding explains {gap.tolerance:.2g}"
    if math.isnan(gap.distance):
        why = "and the baseline server does not report how likely the other text was"
    elif math.isinf(gap.distance):
        why = "with a token that is not one of the baseline's two likeliest"
    prompt = report.prompts[difference.prompt].id
    return f"the text differs from the baseline's on prompt {prompt} from {unit} {difference.position} on, {why}"


def _outlying_runs(figures: SettingFigures, report: BenchReport) -> str:
    """Compares each run with the other repeats of its prompt, relative to the deviations of all prompts.

    It compares seconds per token: how many rounds of a run are warm-up, and not timed, differs between repeats.
    """
    ratios: list[float] = []
    for prompt in range(len(report.prompts)):
        runs = [run.counts for run in report.runs if run.setting == figures.index and run.prompt == prompt]
        times = [seconds for counts in runs if not counts.is_all_warmup and (seconds := counts.tpot_seconds)]
        # The median of two repeats is equally far from both.
        ratios += [seconds / median(times) for seconds in times] if len(times) > 2 else []
    num_outliers = len([i for i in outliers(ratios) if abs(ratios[i] - 1) > MIN_OUTLIER])
    return f"{num_outliers} runs took far longer or shorter than the others" if num_outliers else ""


def outliers(values: Sequence[float]) -> list[int]:
    """Returns the indices of values far from the rest, by modified z-score.

    None for fewer than `MIN_SAMPLES_FOR_OUTLIERS`: of three values the median absolute deviation is the
    smaller gap, so one in twelve ordinary triples would contain an "outlier".

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers; the limit is hyperfine's.
    """
    if len(values) < MIN_SAMPLES_FOR_OUTLIERS:
        return []
    center = median(values)
    deviation = median(abs(value - center) for value in values)
    if not deviation:
        return []
    # 0.6745 of a normal sample's standard deviation is its median absolute deviation.
    return [i for i, value in enumerate(values) if 0.6745 * abs(value - center) / deviation > OUTLIER_SCORE]


def relative_deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation as a fraction of the mean; None for fewer than two values."""
    return stdev(values) / fmean(values) if len(values) > 1 and fmean(values) else None
