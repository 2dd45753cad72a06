"""Checks that drafts do not change the output: `specgen verify`.

One check enumerates all outcomes of the decoding loop on toy models and compares their distribution with the target's.
The other compares greedy answers with a draft and without, and the logits at the first difference. The third check of
the command, batch invariance, is in `specgen.models`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from specgen.core.comparison import first_difference
from specgen.core.events import Round
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.drafters.translated import SharedTokenDrafter, SharedTokens, TranslatedModel
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.near_ties import logit_gap
from specgen.engine.sampling import Sampler, token_distributions
from specgen.runtime.drafting import with_trees
from specgen.runtime.generation import target_alone
from specgen.runtime.loaded_models import LoadedModels
from specgen.verify.results import DistributionError, ReferenceCheck, TextCheck

PROCESSORS = {
    "plain": SamplingSettings(temperature=1.0),
    "temperature": SamplingSettings(temperature=0.6),
    "top-k": SamplingSettings(temperature=1.0, top_k=2),
    "top-p": SamplingSettings(temperature=1.3, top_p=0.75),
    "min-p": SamplingSettings(temperature=0.9, min_p=0.3),
    "penalty": SamplingSettings(temperature=1.0, repetition_penalty=1.7),
}
_VOCAB_SIZE, _NUM_TOKENS = 3, 3
_LIMITS = DecodeSettings(_NUM_TOKENS, num_draft_tokens=2)
_START = (0, 1)
_SHARED = SharedTokens(torch.tensor([0, 1]), torch.tensor([3, 1]))
"""Two of the three tokens, for a draft of four."""

Distribution = dict[tuple[int, ...], float]
"""Probabilities of texts."""


def distribution_errors() -> list[DistributionError]:
    """Compares the exact distribution of the decoding loop with the target's, in float64, for each sampling setting."""
    target, draft = (_table(seed) for seed in (1, 2))
    errors = []
    for name, sampling in PROCESSORS.items():
        expected = _target_distribution(target, sampling)
        distribution, num_outcomes = _loop_distribution(target, draft, sampling)
        errors.append(DistributionError(name, num_outcomes, _error(distribution, expected)))
    expected = _target_distribution(target, PROCESSORS["plain"])
    distribution, num_outcomes = _loop_distribution(target, _table(3, _VOCAB_SIZE + 1), PROCESSORS["plain"], _SHARED)
    return [*errors, DistributionError("shared tokens", num_outcomes, _error(distribution, expected))]


def _error(distribution: Distribution, expected: Distribution) -> float:
    return max(abs(distribution.get(text, 0.0) - expected.get(text, 0.0)) for text in {*distribution, *expected})


class _Renaming:
    """Reads each of the target's tokens as one of the draft's."""

    def draft_ids(self, ids: Sequence[int]) -> list[int]:
        known = dict(zip(_SHARED.target_ids.tolist(), _SHARED.draft_ids.tolist(), strict=True))
        return [known.get(id_, 0) for id_ in ids]

    def target_ids(self, ids: Sequence[int], written: Sequence[int]) -> tuple[list[int], bool]:
        raise NotImplementedError("shared tokens need no text")


def _table(seed: int, vocab_size: int = _VOCAB_SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64) * 1.5


def _loop_distribution(
    target: torch.Tensor, draft: torch.Tensor, sampling: SamplingSettings, shared: SharedTokens | None = None
) -> tuple[Distribution, int]:
    """Returns the distribution of the texts that the decoding loop generates, and the number of outcomes."""

    def run(randomness: ScriptedRandomness) -> tuple[int, ...]:
        draft_model: Any = TableModel(draft)
        sampler = Sampler(sampling, randomness)
        drafter = ModelDrafter(draft_model, len(target), sampler)
        if shared is not None:
            drafter = SharedTokenDrafter(TranslatedModel(draft_model, _Renaming(), shared), len(target), sampler)
        return tuple(_token_ids(decode(TableModel(target), drafter, _START, sampler, DecodeOptions(_LIMITS))))

    distribution: Distribution = defaultdict(float)
    num_outcomes = 0
    for probability, text in every_outcome(run):
        distribution[text] += probability
        num_outcomes += 1
    return distribution, num_outcomes


def _target_distribution(table: torch.Tensor, sampling: SamplingSettings) -> Distribution:
    """Returns the distribution of the next tokens, computed token by token without speculation."""
    distribution: Distribution = {_START: 1.0}
    for _ in range(_NUM_TOKENS):
        longer: Distribution = {}
        for text, weight in distribution.items():
            seen = torch.zeros(1, table.shape[1], dtype=torch.bool)
            seen[0, list(text)] = True
            probs = token_distributions(table[text[-1]].unsqueeze(0), sampling, seen).probs
            assert probs is not None
            longer |= {(*text, token): weight * p for token, p in enumerate(probs[0].tolist()) if p > 0}
        distribution = longer
    return {text[len(_START) :]: weight for text, weight in distribution.items()}


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as text and as token ids."""

    text: str
    ids: Sequence[int]


def compare_texts(models: LoadedModels, prompt: EncodedPrompt, limits: DecodeSettings) -> TextCheck:
    """Answers greedily with the draft and with the target alone, and compares the texts.

    The caches of the models are overwritten. The prompt has at least one token.
    """
    sampling = SamplingSettings()
    models.reuse_prefix(prompt.ids)
    sampler = models.sampler(sampling)
    strict = replace(with_trees(models, limits, is_greedy=True), strict=True)
    draft_length = models.length_policy(strict)
    drafter = models.drafter(sampler)
    events = decode(models.target, drafter, prompt.ids, sampler, DecodeOptions(strict, draft_length))
    rounds = [event for event in events if isinstance(event, Round)]
    answer = _token_ids(rounds)
    models.append(answer)
    models.reuse_prefix(prompt.ids)
    baseline = _token_ids(target_alone(models, prompt.ids, sampling, len(answer)))
    models.append(baseline)
    num_drafted = sum(len(round_.draft_ids) for round_ in rounds)
    num_accepted = sum(round_.num_accepted for round_ in rounds)
    at = first_difference(baseline, answer)
    gap = None
    if at is not None:
        gap = logit_gap(models.target, models.target_info, [*prompt.ids, *baseline[:at]], baseline[at], answer[at])
        models.clear_caches()
    return TextCheck(prompt.text, len(answer), num_drafted, num_accepted, at, gap)


def compare_with_reference(
    models: LoadedModels, reference: LoadedModels, prompt: EncodedPrompt, num_tokens: int
) -> ReferenceCheck:
    """Compares the target alone with the same model on another backend: logits and greedy answers.

    The caches of both are emptied. The prompt has at least one token.
    """
    answer, expected = (_answer_alone(one, prompt.ids, num_tokens) for one in (models, reference))
    text = [*prompt.ids, *expected]
    logits, wanted = (_whole_text_logits(one, text, len(expected)) for one in (models, reference))
    error = float((logits - wanted).norm() / wanted.norm())
    at = first_difference(expected, answer)
    gap = None
    if at is not None:
        gap = logit_gap(reference.target, models.target_info, text[: len(prompt.ids) + at], expected[at], answer[at])
    return ReferenceCheck(prompt.text, len(answer), error, at, gap)


def _answer_alone(models: LoadedModels, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    models.clear_caches()
    models.reuse_prefix(prompt_ids)
    answer = _token_ids(target_alone(models, prompt_ids, SamplingSettings(), num_tokens))
    models.clear_caches()
    return answer


def _whole_text_logits(models: LoadedModels, text: Sequence[int], num_last: int) -> torch.Tensor:
    logits = models.target.logits(text, num_last).float().cpu()
    models.target.rewind(0)
    return logits


def _token_ids(events: Iterable[object]) -> list[int]:
    return [token for event in events if isinstance(event, Round) for token in event.token_ids]
