"""Figures in, what to make of them out: warnings, and which setting to use or whether to speculate at all. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from specgen.bench.figures import SettingFigures, figures_by_setting, total
from specgen.bench.results import BASELINE, BenchReport, Setting
from specgen.bench.statistics import outliers, spread
from specgen.core.cost_model import is_unlike

NOISY_SPREAD = 0.05
WIDE_INTERVAL = 0.10
SLOW_START = 1.10
LEAST_OUTLIER = 0.10
"""On a quiet machine runs are so alike that one can be far off and no different for any purpose."""
CLOSE = 0.01
"""Settings this close to the fastest count as equal; then the one with less memory is recommended."""
CONTRADICTORY = 1.15
"""A gain and a loss further apart than this can't both be true; with several repeats the interval tells which is."""
WORTHWHILE = 1.02
"""Least speedup worth a second model where one repeat leaves the uncertainty unknown."""


@dataclass(frozen=True, slots=True)
class BenchWarning:
    """A reason to trust a figure less.

    Args:
        code: `noisy`, `outliers`, `slow_start`, `spans_one`, `wide_interval`, `one_repeat`, `lengths`, `different`,
            `unlike_predicted`, `failed`, `incomplete`, `out_of_time`.
        message: One sentence.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use.

    Args:
        figures: Of the recommended setting; None: do not speculate.
        reason: Why, one or two sentences.
    """

    figures: SettingFigures | None
    reason: str


def recommend(figures: Sequence[SettingFigures]) -> Recommendation:
    """The fastest setting whose text is right; among settings as fast, the one with the smallest draft.

    None if the target alone may be as fast: the interval of the fastest reaches 1, or its speedup is under 1.02.
    """
    usable = _usable(figures)
    if not usable:
        return Recommendation(None, "no setting was measured to the end with the target's own text")
    best = max(usable, key=_speedup)
    if _speedup(best) < WORTHWHILE or (best.interval is not None and best.interval.low <= 1):
        return Recommendation(None, _why_not(best, figures))
    # One that may be no faster than the target alone stands beside no recommendation, however small its draft.
    sure = [f for f in usable if f.interval is None or f.interval.low > 1]
    close = [f for f in sure if _speedup(f) >= _speedup(best) * (1 - CLOSE)]
    chosen = min(close, key=lambda f: (f.setting.num_draft_bytes, -_speedup(f)))
    return Recommendation(chosen, _why(chosen, best, figures))


def _usable(figures: Sequence[SettingFigures]) -> list[SettingFigures]:
    return [f for f in figures if f.index != BASELINE and f.speedup is not None and f.text_verdict != "different"]


def _speedup(figures: SettingFigures) -> float:
    return figures.speedup or 0.0


def _why(chosen: SettingFigures, best: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    rank = "the fastest measured"
    if chosen is not best:
        rank = f"within {CLOSE:.0%} of the fastest ({best.setting.name}, {_speedup(best):.2f}x), with a smaller draft"
    once = " in one repeat" if chosen.interval is None else ""
    return f"{_speedup(chosen):.2f}x{once}, {rank}: {_balance(chosen, figures)}"


def _why_not(best: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    found = f"The fastest setting, {best.setting.name}, is {_speedup(best):.2f}x"
    if best.interval is not None:
        found += f" (95 % interval {best.interval.low:.2f} to {best.interval.high:.2f})"
    else:
        found += " in one repeat"
    return f"{found}: {_balance(best, figures)}"


def _balance(figures: SettingFigures, everything: Sequence[SettingFigures]) -> str:
    """What a round costs and yields, in steps of the target alone."""
    counts = figures.counts
    alone = next((f.counts.tpot_seconds for f in everything if f.index == BASELINE), None)
    if not alone or not counts.num_rounds:
        return "nothing was measured to explain it"
    cost = counts.decode_seconds / counts.num_rounds / alone
    share = 100 * (counts.draft_share or 0)
    text = f"a round costs {cost:.2f} steps of the target alone and yields {counts.block_efficiency or 0:.2f} tokens"
    return f"{text} (drafting takes {share:.0f} % of the time)"


def warnings_of(report: BenchReport, figures: Sequence[SettingFigures] | None = None) -> list[BenchWarning]:
    """Every reason to doubt a figure of the report."""
    figures = figures_by_setting(report) if figures is None else figures
    found = [
        BenchWarning("failed", f"{report.settings[f.setting].name} was left out: {f.message}") for f in report.failures
    ]
    if report.is_out_of_time:
        wanted = len(report.settings) * len(report.prompts) * report.config.num_repeats
        text = (
            f"the time ran out behind {len(report.runs)} of {wanted} runs, of which the figures are; leave --quick out"
        )
        found.append(BenchWarning("out_of_time", text))
    elif not report.is_complete:
        found.append(BenchWarning("incomplete", "the benchmark did not run to its end; these are the runs that did"))
    found += _noise(report)
    if report.config.stops_at_end and len({len(run.token_ids) for run in report.runs}) > 1:
        found.append(BenchWarning("lengths", "answers have unequal lengths (--stop-at-eos)"))
    for item in figures:
        found += _about(item, report)
    return found


def _noise(report: BenchReport) -> list[BenchWarning]:
    """How steady the target alone was: it does the same work every time."""
    found = []
    repeats = sorted({run.repeat for run in report.runs})
    if len(repeats) == 1:
        more = "" if report.is_out_of_time else "; give -r 5"
        found.append(BenchWarning("one_repeat", f"one repeat tells nothing about the uncertainty{more}"))
    rates = []
    for repeat in repeats:
        runs = [run for run in report.runs if run.setting == BASELINE and run.repeat == repeat]
        rate = total(runs).tokens_per_second
        rates += [] if rate is None else [rate]
    wide = spread(rates)
    if wide is not None and wide > NOISY_SPREAD:
        text = f"the target alone varied by {wide:.0%} between repeats: close other programs, or give more repeats"
        found.append(BenchWarning("noisy", text))
    if len(rates) > 2 and min(rates[1:]) > SLOW_START * rates[0]:
        found.append(BenchWarning("slow_start", "the first repeat was slower than all others: give more warm-up, -w 2"))
    return found


def _about(figures: SettingFigures, report: BenchReport) -> list[BenchWarning]:
    """Doubts about one setting."""
    name, interval = figures.setting.name, figures.interval
    found = []
    strange = _num_outliers(figures.index, report)
    if strange:
        found.append(BenchWarning("outliers", f"{name}: {strange} runs took far longer or shorter than the others"))
    if interval is not None and interval.contains(1.0):
        text = f"{name}: no measurable difference, the interval {interval.low:.2f} to {interval.high:.2f} holds 1"
        found.append(BenchWarning("spans_one", text))
    elif interval is not None and interval.high - interval.low > WIDE_INTERVAL * (figures.speedup or 1):
        text = f"{name}: the interval {interval.low:.2f} to {interval.high:.2f} is wide; give more repeats"
        found.append(BenchWarning("wide_interval", text))
    predicted, speedup = figures.predicted_speedup, figures.speedup
    if is_unlike(speedup, predicted) or (interval is None and _contradict(speedup, predicted)):
        text = f"{name}: measured {speedup:.2f}x where the costs of passes predict {predicted:.2f}x: one was disturbed"
        found.append(BenchWarning("unlike_predicted", text))
    difference = figures.difference
    if figures.text_verdict == "different" and difference is not None:
        text = (
            f"{name}: the text differs from the target's own on prompt {report.prompts[difference.prompt].id} "
            f"from token {difference.position} on, by {difference.gap.distance:.2g} logits, where rounding explains "
            f"{difference.gap.tolerance:.2g}"
        )
        found.append(BenchWarning("different", text))
    return found


def _contradict(measured: float | None, predicted: float | None) -> bool:
    """Whether one says gain and the other loss, and by more than either is rounded."""
    if measured is None or predicted is None:
        return False
    low, high = sorted((measured, predicted))
    return low < 1 < high and high > CONTRADICTORY * low


def _num_outliers(index: int, report: BenchReport) -> int:
    """Runs far from the other repeats of their prompt, held against how far all prompts' runs are from theirs."""
    shares: list[float] = []
    for prompt in range(len(report.prompts)):
        runs = [run for run in report.runs if run.setting == index and run.prompt == prompt]
        times = [run.counts.decode_seconds for run in runs]
        # With two repeats the middle is neither of them, and each is as far off as the other.
        shares += [seconds / median(times) for seconds in times] if len(times) > 2 else []
    return len([i for i in outliers(shares) if abs(shares[i] - 1) > LEAST_OUTLIER])


def best_speedup(figures: Sequence[SettingFigures]) -> SettingFigures | None:
    """The fastest setting whose text is right: what limits of scripts are held against."""
    return max(_usable(figures), key=_speedup, default=None)


def command_line_for(setting: Setting) -> str:
    """Options that make `generate` and `chat` run a setting."""
    backend = f" --backend {setting.backend}" if setting.backend else ""
    if setting.drafter == "none":
        return f"-d none{backend}"
    quant = f" --draft-quant {setting.quant}" if setting.drafter.startswith("model") and setting.quant != "auto" else ""
    # What `auto` stands for has no name of its own that options know.
    is_auto = setting.draft.partition(":")[0] == "auto"
    beside = "+lookup" if setting.drafter == "model+lookup" and not is_auto else ""
    name = setting.draft.removesuffix(beside)
    name = (name if setting.quant == "auto" else name.removesuffix(f":{setting.quant}")) + beside
    return f"-d {shlex.quote(name)}{quant} -k {setting.length}{backend}"
