"""Measures the most promising drafts of a ranking with a short run: costs of passes, and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specgen.core.cost_model import MeasuredCosts, PassCosts, forecast, predicted_speedup
from specgen.core.doubt import MAX_NOISE
from specgen.core.draft_name import DraftName
from specgen.core.errors import SpecgenError
from specgen.core.metrics import Counts, sum_counts
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import DecodeSettings, ModelSettings, SamplingSettings
from specgen.doctor.draft_candidates import DraftCandidate, as_draft
from specgen.doctor.draft_forecast import DraftForecast, DraftRanking, Prediction, UnusableDraft, ranked
from specgen.runtime import learned_costs
from specgen.runtime.generation import Generation, Request
from specgen.runtime.intervals import ratio_interval
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair
from specgen.runtime.pass_costs import measure_pass_costs

NUM_MEASURED = 3
NUM_TOKENS = 24
"""New tokens for each prompt."""
DISTURBED = (
    "other programs probably disturbed the timing: a pass over one token took longer than one over several. The speeds "
    "mean little; repeat it when the machine is quiet"
)
MEASURED_LENGTH = 5
"""Draft length of the runs; predictions for other lengths follow from what was accepted at each position."""


def measure_drafts(
    ranking: DraftRanking,
    baseline: Pair,
    prompts: Sequence[Sequence[int]],
    like: ModelSettings,
    progress: ProgressListener = SILENT,
) -> DraftRanking:
    """Measures the first drafts of a ranking that are on this machine, and ranks again.

    All are timed with one target in memory. What was measured is saved for later rankings; no costs if other programs
    disturbed the timing.

    Args:
        ranking: Its first drafts are measured.
        baseline: The target without a drafter.
        prompts: Token ids of prompts.
        like: How drafts are loaded; the name is ignored.
        progress: Receives what is measured.

    Raises:
        LoadError: The target is damaged.
        DeviceError: There is too little memory for the target.
    """
    here = [one for one in ranking.drafts if one.source != "hub" and one.fits is not False]
    chosen = {one.draft: one for one in here[:NUM_MEASURED]}
    target = load_models(baseline, progress)
    loaded: dict[str, LoadedModels] = {}
    failed: dict[str, str] = {}
    for name, one in chosen.items():
        progress.stage(f"loading {name}")
        try:
            pair = baseline.with_draft(DraftName(name), _settings(one, like))
            loaded[name] = target.with_draft(pair, progress)
        except SpecgenError as error:
            failed[name] = error.message
    progress.stage("timing passes")
    costs = measure_pass_costs(loaded or {"none": target}, prompts[0], MEASURED_LENGTH)
    one_pass, is_disturbed = costs.verify(1) or 0.0, _was_disturbed(costs)
    measured = {}
    for name, models in loaded.items():
        progress.stage(f"measuring {name}")
        counts = [_run(models, prompt) for prompt in prompts]
        found = _measured(chosen[name], costs, name, counts, one_pass)
        measured[name] = replace(found, command=found.bench_command(baseline.settings.target, like))
        learned_costs.save_acceptance(models, sum_counts(counts))
        if not is_disturbed:
            learned_costs.save(models, measured=costs.verify_seconds)
    rest = [measured.get(one.draft, one) for one in ranking.drafts if one.draft not in failed]
    rest = [_rescaled(one, one_pass) for one in rest]
    unusable = (*ranking.unusable, *(UnusableDraft(name, reason) for name, reason in failed.items()))
    notices = (*ranking.notices, DISTURBED) if is_disturbed else ranking.notices
    return replace(
        ranking,
        target_seconds=one_pass,
        target_basis="measured",
        drafts=ranked(rest),
        unusable=unusable,
        notices=notices,
    )


def _settings(forecast_: DraftForecast, like: ModelSettings) -> ModelSettings:
    """Returns how to load a draft."""
    settings = as_draft(DraftCandidate(forecast_.draft, forecast_.source), like)
    if forecast_.draft_vocab in ("shared", "text"):
        return replace(settings, draft_vocab=forecast_.draft_vocab)
    return settings


def _run(models: LoadedModels, prompt: Sequence[int]) -> Counts:
    """Generates greedily with a fixed draft length."""
    models.clear_caches()
    limits = DecodeSettings(NUM_TOKENS, MEASURED_LENGTH)
    generation = Generation(models, Request(prompt, limits, SamplingSettings()))
    for _ in generation:
        pass
    return generation.counts


def _measured(
    estimate: DraftForecast, costs: MeasuredCosts, name: str, counts: Sequence[Counts], one_pass: float
) -> DraftForecast:
    """Returns a forecast from measured costs and from the drafts that were accepted."""
    total, own = sum_counts(counts), costs.of(name)
    length, speedup = MEASURED_LENGTH, predicted_speedup(total, own) or 1.0
    if name != "lookup":
        by_length = forecast(total, own).by_length
        length, speedup = max(by_length.items(), key=lambda item: item[1], default=(0, 1.0))
    return replace(
        estimate,
        relative_cost=own.draft_seconds / one_pass if one_pass else estimate.relative_cost,
        cost_basis="measured",
        alpha=total.alpha or 0.0,
        alpha_basis="measured",
        num_draft_tokens=length if speedup > 1 else 0,
        speedup=_with_interval(speedup, length, counts, own),
    )


def _with_interval(speedup: float, length: int, counts: Sequence[Counts], costs: PassCosts) -> Prediction:
    """Returns a speedup with its 95 % interval over prompts, by the jackknife.

    A prompt alone has too few rounds for a prediction, but all prompts without one have enough. Source: Tukey 1958,
    pseudo-values n θ - (n - 1) θ(i), here of logarithms.

    Args:
        speedup: Predicted for all prompts.
        length: Draft length that it was predicted for; 0 if none pays.
        counts: Of each prompt.
        costs: Of the passes.
    """
    number, pseudo = len(counts), []
    for index in range(number):
        without = sum_counts([*counts[:index], *counts[index + 1 :]])
        predicted = forecast(without, costs)
        value = predicted.by_length.get(length) if costs.is_per_round is False else predicted.speedup
        if value:
            pseudo.append(speedup**number / value ** (number - 1))
    interval = ratio_interval(pseudo)
    if interval is None or not length:
        return Prediction(speedup, speedup, speedup)
    return Prediction(speedup, min(interval.low, speedup), max(interval.high, speedup))


def _rescaled(one: DraftForecast, one_pass: float) -> DraftForecast:
    return replace(one, tokens_per_second=one.speedup.times(1 / one_pass) if one_pass else None)


def _was_disturbed(costs: MeasuredCosts) -> bool:
    """Returns whether a pass over one token took longer than one over several: that is an error of timing."""
    one = costs.verify(1)
    return one is not None and one > MAX_NOISE * min(costs.verify_seconds.values())
