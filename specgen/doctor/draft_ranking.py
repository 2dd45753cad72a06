"""Predicts what each candidate would do as a draft, and ranks them. Reads no weights.

Costs and acceptance come from earlier runs on this machine where there were any; else they follow from the sizes of
the models and from how often the tokens of two vocabularies agree, and are called estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specgen.core.cost_model import PassCosts, best_draft_length, interpolated
from specgen.core.draft_name import DraftName
from specgen.core.errors import ModelNotFoundError, SettingsError, SpecgenError
from specgen.core.machine import processor_name
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import DraftVocab, ModelSettings
from specgen.doctor.draft_candidates import DraftCandidate, as_draft, find_candidates
from specgen.doctor.draft_forecast import Basis, DraftForecast, DraftRanking, Prediction, UnusableDraft, ranked
from specgen.doctor.examine import examine_pair
from specgen.doctor.pass_estimate import MachineSpeed, measure_machine
from specgen.doctor.results import DevicePlan, ModelPlan, PairReport
from specgen.loading.resolved_model import ResolvedModel
from specgen.runtime.draft_vocabulary import (
    ASSUMED_ALPHA,
    ASSUMED_SLOPE,
    LONGEST_ASSUMED,
    Overlap,
    TranslatedPairing,
    translated_costs,
)
from specgen.runtime.learned_costs import ALPHA, TOKEN, acceptance_key, is_length, model_identity
from specgen.runtime.pair import Pair
from specgen.storage.cost_store import CostStore

ALPHA_RANGE = 0.15
"""Estimated acceptance rates were this far from measured ones."""
LEARNED_RANGE = 0.05
"""Acceptance rates of one pair differ by this much between texts."""
COST_FACTOR = 1.5
"""By which an estimated cost may be wrong, up or down."""
FAMILY_ALPHA, HEAD_ALPHA = 0.8, 0.6
"""Acceptance of a smaller model of the target's family (Qwen2.5-Coder-0.5B for 1.5B: 79 to 90 %), and of a draft head
(the one that comes with specgen: 56 %)."""
UNTRAINED_SHARE = 0.85
"""Of it, where the target was trained to chat and the draft was not: 50 to 56 % were accepted of Gemma 3 270M, a base
model, for Qwen2.5-Coder-1.5B, and 61 % of SmolLM2-135M-Instruct, whose layers have as many weights."""
LOOKUP_ROUNDS, LOOKUP_ALPHA, LOOKUP_LENGTH = 0.2, 0.5, 5
"""Rounds that find a match, and what is accepted of it, in texts that are not about a given file."""
UNKNOWN_OVERLAP = Overlap(1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is known of the target.

    Args:
        plan: Its format, device and memory.
        device: Memory of its first device.
        verify: v(n) in units of v(1), for the cost model.
        seconds: v(1) in seconds.
        basis: Where they come from.
        speed: Estimates the costs of models that were not measured.
    """

    pair: Pair
    plan: ModelPlan
    device: DevicePlan
    verify: dict[int, float]
    seconds: float
    basis: Basis
    speed: MachineSpeed

    @property
    def estimated_seconds(self) -> float:
        """An estimate of v(1): that of a draft is compared with it, so that their common errors cancel."""
        return self.speed.pass_seconds(self.pair.target, self.plan)


def rank_drafts(
    baseline: Pair,
    given: Sequence[str],
    like: ModelSettings,
    progress: ProgressListener = SILENT,
    store: CostStore | None = None,
) -> DraftRanking:
    """Ranks the candidates for a target by predicted tokens per second.

    Args:
        baseline: The target without a drafter.
        given: As in `find_candidates`.
        like: How drafts are loaded; the name is ignored.
        progress: Receives the candidates' names.
        store: What earlier runs learned. Default: the user's.
    """
    store = store or CostStore()
    target = _examine_target(baseline, store)
    candidates, notices = find_candidates(baseline.target, given)
    found: list[DraftForecast] = []
    unusable = []
    for candidate in candidates:
        progress.stage(f"examining {candidate.draft}")
        try:
            forecast = _forecast(target, candidate, like, store)
        except ModelNotFoundError as error:
            if candidate.source == "cache":
                continue
            unusable.append(UnusableDraft(candidate.draft, error.message))
        except SpecgenError as error:
            unusable.append(UnusableDraft(candidate.draft, error.message))
        else:
            found.append(replace(forecast, command=forecast.bench_command(baseline.settings.target, like)))
    return DraftRanking(
        baseline.target.name, target.seconds, target.basis, ranked(found), tuple(unusable), tuple(notices)
    )


def _examine_target(baseline: Pair, store: CostStore) -> _Target:
    report = examine_pair(baseline)
    plan, device = report.models[0], report.devices[0]
    speed = measure_machine()
    stored = store.find(_facts(baseline.target, plan))
    learned = {int(n): seconds for n, seconds in stored.items() if is_length(n)}
    if 1 in learned:
        verify = _verify({n: seconds / learned[1] for n, seconds in learned.items()})
        return _Target(baseline, plan, device, verify, learned[1], "learned", speed)
    seconds = speed.pass_seconds(baseline.target, plan)
    return _Target(baseline, plan, device, _verify({1: 1.0}), seconds, "estimated", speed)


def _verify(known: dict[int, float]) -> dict[int, float]:
    """Returns v(n) up to the longest draft considered; beyond the known lengths a token costs `ASSUMED_SLOPE`."""
    longest = max(known)
    further = {n: known[longest] + ASSUMED_SLOPE * (n - longest) for n in range(longest + 1, LONGEST_ASSUMED + 2)}
    return {**known, **further}


def _facts(model: ResolvedModel, plan: ModelPlan, kind: DraftVocab = "same") -> dict[str, str | int]:
    """Returns what identifies the costs of a model on this machine, as far as it is known without loading it."""
    facts: dict[str, str | int] = {"role": model.role, "model": model_identity(model.files), "device": plan.device}
    if model.gguf is None:
        facts |= {"quant": plan.quant, "dtype": plan.dtype}
    if not plan.device.startswith("cuda"):
        facts["processor"] = processor_name()
    return facts if kind == "same" else {**facts, "vocab": kind}


def _forecast(target: _Target, candidate: DraftCandidate, like: ModelSettings, store: CostStore) -> DraftForecast:
    """Predicts one candidate.

    Raises:
        SpecgenError: It can't be used.
    """
    if candidate.on_hub is not None:
        return _from_the_hub(target, candidate)
    if candidate.source == "lookup":
        return _lookup(target)
    name = DraftName(candidate.draft)
    if name.kind == "none":
        raise SettingsError("invalid --draft 'none': there is nothing to rank", "omit it")
    pair = target.pair.with_draft(name, as_draft(candidate, like))
    if pair.draft is None or pair.shared is None:
        return replace(_lookup(target), draft=candidate.draft, source=candidate.source)
    report = examine_pair(pair)
    plan, kind = report.models[1], pair.shared.kind
    overlap = pair.shared.overlap if isinstance(pair.shared, TranslatedPairing) else UNKNOWN_OVERLAP
    ratio = target.speed.pass_seconds(pair.draft, plan, target.plan) / target.estimated_seconds
    cost_basis: Basis = "estimated"
    learned = store.find(_facts(pair.draft, plan, kind)).get(TOKEN)
    if learned is not None and target.basis == "learned":
        ratio, cost_basis = learned / target.seconds, "learned"
    alpha, costs = translated_costs(kind, overlap, _assumed_alpha(pair, kind), ratio, target.verify)
    known = store.read(acceptance_key(pair.target.files, pair.draft.files, kind)).get(ALPHA)
    alpha_basis: Basis = "estimated" if known is None else "learned"
    speedup, length = _speedup(known or alpha, costs, alpha_basis, cost_basis)
    vocabulary = pair.shared.remark or "the target's own vocabulary"
    return DraftForecast(
        draft=candidate.draft,
        source="draft head" if pair.draft.draft_head is not None else candidate.source,
        vocabulary=vocabulary,
        draft_vocab=kind,
        num_bytes=plan.memory.weights,
        fits=_fits(report),
        relative_cost=costs.draft_seconds,
        cost_basis=cost_basis,
        alpha=known or alpha,
        alpha_basis=alpha_basis,
        num_draft_tokens=length,
        speedup=speedup,
        tokens_per_second=_rate(target, speedup),
    )


def _assumed_alpha(pair: Pair, kind: DraftVocab) -> float:
    """Returns the acceptance of a draft token, with the same vocabulary."""
    assert pair.draft is not None, "the caller checks it"
    if pair.draft.draft_head is not None:
        return HEAD_ALPHA
    is_trained = not pair.tokenizer.chat_template or bool(pair.draft.tokenizer.chat_template)
    return (FAMILY_ALPHA if kind == "same" else ASSUMED_ALPHA) * (1 if is_trained else UNTRAINED_SHARE)


def _lookup(target: _Target) -> DraftForecast:
    """Predicts prompt lookup, which drafts only where the text repeats itself."""
    verify = interpolated(target.verify, LOOKUP_LENGTH + 1) or 1.0

    def speedup(share: float, alpha: float) -> float:
        accepted = sum(alpha**position for position in range(1, LOOKUP_LENGTH + 1))
        return (1 + share * accepted) / (1 - share + share * verify)

    middle = max(1.0, speedup(LOOKUP_ROUNDS, LOOKUP_ALPHA))
    interval = Prediction(middle, 1.0, max(middle, speedup(2 * LOOKUP_ROUNDS, LOOKUP_ALPHA + ALPHA_RANGE)))
    return DraftForecast(
        *("lookup", "lookup", "needs none", None, 0, True, 0.0, "estimated", LOOKUP_ALPHA, "estimated"),
        LOOKUP_LENGTH,
        interval,
        _rate(target, interval),
    )


def _from_the_hub(target: _Target, candidate: DraftCandidate) -> DraftForecast:
    """Predicts a model of the target's family from the size in its name."""
    assert candidate.on_hub is not None, "the caller checks it"
    plan = target.plan
    ratio = candidate.on_hub.num_parameters / max(plan.num_parameters, 1)
    num_bytes = int(plan.memory.weights * ratio)
    alpha, costs = translated_costs("same", UNKNOWN_OVERLAP, FAMILY_ALPHA, ratio, target.verify)
    speedup, length = _speedup(alpha, costs, "estimated", "estimated")
    device = target.device
    return DraftForecast(
        draft=candidate.draft,
        source="hub",
        vocabulary="not downloaded; probably the target's own vocabulary, as of one family",
        draft_vocab=None,
        num_bytes=num_bytes,
        fits=None if device.free is None else device.needed + num_bytes <= device.free,
        relative_cost=ratio,
        cost_basis="estimated",
        alpha=alpha,
        alpha_basis="estimated",
        num_draft_tokens=length,
        speedup=speedup,
        tokens_per_second=_rate(target, speedup),
    )


def _speedup(alpha: float, costs: PassCosts, alpha_basis: Basis, cost_basis: Basis) -> tuple[Prediction, int]:
    """Returns the speedup of the best draft length with its interval, and that length."""
    margin = ALPHA_RANGE if alpha_basis == "estimated" else LEARNED_RANGE
    factor = COST_FACTOR if cost_basis == "estimated" else 1.0
    cheap, expensive = (replace(costs, draft_seconds=costs.draft_seconds * by) for by in (1 / factor, factor))
    length, middle = best_draft_length(alpha, costs)
    low = best_draft_length(max(alpha - margin, 0.0), expensive)[1]
    high = best_draft_length(min(alpha + margin, 0.99), cheap)[1]
    return Prediction(middle, low, high), length


def _rate(target: _Target, speedup: Prediction) -> Prediction:
    factor = COST_FACTOR if target.basis == "estimated" else 1.0
    rate = speedup.times(1 / target.seconds)
    return Prediction(rate.value, rate.low / factor, rate.high * factor)


def _fits(report: PairReport) -> bool | None:
    fits = [device.fits for device in report.devices]
    return False if False in fits else None if None in fits else True
