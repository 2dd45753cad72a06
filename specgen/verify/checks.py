"""A session and prompts in, evidence that its text is the target's own out: what `specgen verify` shows.

Three proofs, each able to fail: the loop's law by walking every outcome on tables; whether the rows of the target's
passes change each other; and greedy answers with a draft against the target alone, with the logits where they part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from specgen.core.events import Round
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.sampling import Sampler, token_distributions
from specgen.runtime.generation import target_alone
from specgen.runtime.loaded_models import LoadedModels
from specgen.runtime.near_ties import first_difference, logit_gap
from specgen.verify.results import DistributionError, TextCheck

PROCESSORS = {
    "plain": SamplingSettings(temperature=1.0),
    "temperature": SamplingSettings(temperature=0.6),
    "top-k": SamplingSettings(temperature=1.0, top_k=2),
    "top-p": SamplingSettings(temperature=1.3, top_p=0.75),
    "min-p": SamplingSettings(temperature=0.9, min_p=0.3),
    "penalty": SamplingSettings(temperature=1.0, repetition_penalty=1.7),
}
_START = (0, 1)


def distribution_errors(vocab_size: int = 3, num_draft_tokens: int = 2, num_tokens: int = 3) -> list[DistributionError]:
    """Run the real loop over every outcome of its choices and compare its law with the target's, in float64."""
    target_table, draft_table = (_table(vocab_size, seed) for seed in (1, 2))
    found = []
    for name, sampling in PROCESSORS.items():
        wanted = _target_distribution(target_table, sampling, num_tokens)
        limits = DecodeSettings(num_tokens, num_draft_tokens)

        def run(
            chance: ScriptedRandomness, sampling: SamplingSettings = sampling, limits: DecodeSettings = limits
        ) -> tuple[int, ...]:
            draft: Any = TableModel(draft_table)
            sampler = Sampler(sampling, chance)
            drafter = ModelDrafter(draft, vocab_size, sampler)
            events = decode(TableModel(target_table), drafter, _START, sampler, DecodeOptions(limits))
            return tuple(token for event in events if isinstance(event, Round) for token in event.token_ids)

        distribution: dict[tuple[int, ...], float] = defaultdict(float)
        num_outcomes = 0
        for probability, text in every_outcome(run):
            distribution[text] += probability
            num_outcomes += 1
        error = max(abs(distribution.get(text, 0.0) - wanted.get(text, 0.0)) for text in {*distribution, *wanted})
        found.append(DistributionError(name, num_outcomes, error))
    return found


def _table(vocab_size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64) * 1.5


def _target_distribution(
    table: torch.Tensor, sampling: SamplingSettings, num_tokens: int
) -> dict[tuple[int, ...], float]:
    """The law of the next tokens, written down without any speculation."""
    distribution: dict[tuple[int, ...], float] = {_START: 1.0}
    for _ in range(num_tokens):
        longer: dict[tuple[int, ...], float] = {}
        for text, weight in distribution.items():
            seen = torch.zeros(1, table.shape[1], dtype=torch.bool)
            seen[0, list(text)] = True
            probs = token_distributions(table[text[-1]].unsqueeze(0), sampling, seen).probs
            assert probs is not None
            longer |= {(*text, token): weight * p for token, p in enumerate(probs[0].tolist()) if p > 0}
        distribution = longer
    return {text[len(_START) :]: weight for text, weight in distribution.items()}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Words for people, ids for the models."""

    text: str
    ids: Sequence[int]


def compare(models: LoadedModels, prompt: Prompt, limits: DecodeSettings) -> TextCheck:
    """Answer greedily with the session's draft and with the target alone, and look at the first token that differs.

    Args:
        session: Its caches are emptied.
        prompt: At least one token.
        limits: Budget, draft length, end tokens.
    """
    sampling = SamplingSettings()
    models.reuse_prefix(prompt.ids)
    sampler = models.sampler(sampling)
    strict = replace(limits, strict=True)
    draft_length = models.draft_length if limits.schedule == "auto" else None
    drafter = models.drafter(sampler)
    events = decode(models.target, drafter, prompt.ids, sampler, DecodeOptions(strict, draft_length))
    rounds = [event for event in events if isinstance(event, Round)]
    drafted = [token for round_ in rounds for token in round_.token_ids]
    models.append(drafted)
    models.reuse_prefix(prompt.ids)
    alone = [
        token
        for event in target_alone(models, prompt.ids, sampling, len(drafted))
        if isinstance(event, Round)
        for token in event.token_ids
    ]
    models.append(alone)
    num_drafted = sum(len(round_.draft_ids) for round_ in rounds)
    num_accepted = sum(round_.num_accepted for round_ in rounds)
    at = first_difference(alone, drafted)
    if at is None:
        return TextCheck(prompt.text, len(drafted), num_drafted, num_accepted)
    gap = logit_gap(models.target, models.target_info, [*prompt.ids, *alone[:at]], alone[at], drafted[at])
    models.clear_caches()
    return TextCheck(prompt.text, len(drafted), num_drafted, num_accepted, at, gap)
