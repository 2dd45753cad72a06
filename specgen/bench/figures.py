"""Raw runs in, the figures of each setting out: sums over runs, paired with the target alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from specgen.bench.statistics import Interval, ratio_interval
from specgen.bench.values import BASELINE, BenchReport, Costs, Difference, Run, Setting
from specgen.metrics import Counts, expected_block_efficiency

Sameness = Literal["same", "near-tie", "different"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is told about one setting.

    Args:
        index: Of the setting.
        setting: The setting.
        counts: Sums over its runs.
        num_runs: How many.
        speedup: Seconds per token of the target alone / of this setting, as a ratio of sums over the same prompts
            and repeats; None for the target alone and before the first pair.
        interval: 95 % interval over the repeats; None with fewer than two.
        repeat_ratios: The speedup of each whole repeat.
        prompt_ratios: The speedup on each prompt, by the prompt's index.
        ttft_seconds: Mean over runs.
        peak_memory_bytes: Largest of the runs.
        sameness: Whether greedy answers were the target's own; None if nothing was compared.
        difference: The first one of the worst kind, if there is one.
        predicted_speedup: What the measured costs of passes predict for the rounds of these runs; None if unknown.
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
    sameness: Sameness | None
    difference: Difference | None
    predicted_speedup: float | None


def figures_of(report: BenchReport, category: str | None = None) -> list[Figures]:
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


def _figures(report: BenchReport, index: int, setting: Setting, own: Sequence[Run], baseline: Sequence[Run]) -> Figures:
    counts = total(own)
    pairs = paired(baseline, own) if index != BASELINE else []
    repeats = _whole_repeats(pairs)
    prompts = sorted({run.prompt for run, _ in pairs})
    peaks = [run.peak_memory_bytes for run in own if run.peak_memory_bytes is not None]
    waits = [run.counts.ttft_seconds for run in own if run.counts.ttft_seconds is not None]
    sameness, difference = _sameness(report, index, {run.prompt for run in own})
    return Figures(
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
        sameness=sameness,
        difference=difference,
        predicted_speedup=predicted_speedup(counts, report.costs, setting) if index != BASELINE else None,
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


def _sameness(report: BenchReport, index: int, prompts: set[int]) -> tuple[Sameness | None, Difference | None]:
    if index == BASELINE or not report.config.sampling.is_greedy:
        return None, None
    found = [d for d in report.differences if d.setting == index and d.prompt in prompts]
    real = [d for d in found if not d.is_near_tie]
    if real:
        return "different", real[0]
    return ("near-tie", found[0]) if found else ("same", None)


def predicted_speedup(counts: Counts, costs: Costs | None, setting: Setting) -> float | None:
    """What the costs of passes predict for these rounds, whatever the clock said in the runs.

    Every token of the target alone costs v(1). A round of these runs costs its draft and v(drafted + 1); how many
    were drafted and kept is counted, not timed.
    """
    one = None if costs is None else costs.verify(1)
    if costs is None or one is None or not counts.num_rounds or setting.label not in costs.draft_seconds:
        return None
    drafting = costs.draft_seconds[setting.label]
    num_drawn = counts.num_drafted + counts.num_cut - counts.num_lookup_drafted
    seconds = drafting * (counts.num_rounds if setting.drafter == "lookup" else num_drawn)
    for num_drafted, num_rounds in enumerate(counts.drafted_histogram):
        verify = costs.verify(num_drafted + 1)
        if num_rounds and verify is None:
            return None
        seconds += num_rounds * (verify or 0.0)
    return counts.num_emitted * one / seconds if seconds else None


def modelled_speedup(alpha: float, num_draft_tokens: int, costs: Costs, label: str) -> float | None:
    """Speedup at a draft length if each token is accepted with probability α: the curve of the plot.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), Theorem 3.8, with the measured v(k + 1) in place of v(1).
    """
    one, verify = costs.verify(1), costs.verify(num_draft_tokens + 1)
    if not one or not verify:
        return None
    cost = num_draft_tokens * costs.draft_seconds.get(label, 0.0) + verify
    return expected_block_efficiency(alpha, num_draft_tokens) * one / cost


def break_even_alpha(num_draft_tokens: int, costs: Costs, label: str) -> float | None:
    """The α from which drafts of this length pay; None if they can't even if every token is accepted."""
    best = modelled_speedup(1.0, num_draft_tokens, costs, label)
    if best is None or best <= 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if (modelled_speedup(middle, num_draft_tokens, costs, label) or 0.0) < 1:
            low = middle
        else:
            high = middle
    return high
