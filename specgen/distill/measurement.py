"""Measures a draft: its acceptance on held-out texts, and what passes cost with both models as they will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from specgen.core.cost_model import PassCosts, round_speedup
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings, PairSettings
from specgen.distill.draft import SharedWeights, TrainableDraft
from specgen.distill.target_texts import TargetText, pad_batch
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from specgen.runtime.pass_costs import measure_pass_costs

MAX_DRAFT = 6
WIDTHS = (1, 2, 4)
"""Candidates for one position that are counted: what drafts that branch may gain."""


@dataclass(frozen=True, slots=True)
class DraftAcceptance:
    """Results of greedy drafts of each length 1 to `MAX_DRAFT` on greedy texts.

    Args:
        num_accepted, num_tested, num_rounds: One number per draft length.
        by_step: Share of positions at which step s of a draft that started s positions earlier is right.
        by_width: The same, by `WIDTHS`: the token is one of that many likeliest ones.
    """

    num_accepted: tuple[int, ...]
    num_tested: tuple[int, ...]
    num_rounds: tuple[int, ...]
    by_step: tuple[float, ...]
    by_width: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def alpha(self, length: int) -> float:
        """Returns accepted per tested token at a draft length."""
        return self.num_accepted[length - 1] / max(1, self.num_tested[length - 1])

    def tokens_per_round(self, length: int) -> float:
        """Returns the block efficiency at a draft length, with the target's own token."""
        return 1 + self.num_accepted[length - 1] / max(1, self.num_rounds[length - 1])

    def speedup(self, length: int, costs: PassCosts) -> float:
        """Predicts the speedup at a draft length; 0 if a cost is unknown."""
        return round_speedup(self.tokens_per_round(length), length, costs) or 0.0

    def best_length(self, costs: PassCosts) -> tuple[int, float]:
        """Returns the draft length with the highest predicted speedup, and that speedup."""
        lengths = range(1, len(self.num_rounds) + 1)
        return max(((n, self.speedup(n, costs)) for n in lengths), key=lambda entry: entry[1])


@dataclass(frozen=True, slots=True)
class TimedPair:
    """Costs of a target and a draft, and how both ran."""

    costs: PassCosts
    target: ModelInfo
    draft: ModelInfo


@torch.no_grad()
def measure_acceptance(
    draft: TrainableDraft, texts: Sequence[TargetText], shared: SharedWeights, num_steps: int = MAX_DRAFT
) -> DraftAcceptance:
    """Replays the decoding loop on texts that the target generated greedily.

    Drafts run along the tokens of the text. This is exact, as nothing counts after the first token that differs.
    """
    accepted, tested, rounds = ([0] * num_steps for _ in range(3))
    right, positions = torch.zeros(len(WIDTHS), num_steps, dtype=torch.int64), [0] * num_steps
    for text in texts:
        ranks = _ranks(draft, text, shared, num_steps)
        is_right = ranks == 0
        first, end = text.num_prompt - 1, len(text.ids) - 1
        for step in range(num_steps):
            here = ranks[step, first + step : end]
            right[:, step] += torch.stack([(here < width).sum() for width in WIDTHS])
            positions[step] += max(0, end - first - step)
        table = is_right.tolist()
        for length in range(1, num_steps + 1):
            at = first
            while at < end:
                limit = min(length, end - at - 1)
                run = 0
                while run < limit and table[run][at + run]:
                    run += 1
                accepted[length - 1] += run
                tested[length - 1] += min(run + 1, limit)
                rounds[length - 1] += 1
                at += run + 1
    by_width = {
        width: tuple(r / max(1, n) for r, n in zip(row, positions, strict=True))
        for width, row in zip(WIDTHS, right.tolist(), strict=True)
    }
    return DraftAcceptance(tuple(accepted), tuple(tested), tuple(rounds), by_width[1], by_width)


def _ranks(draft: TrainableDraft, text: TargetText, shared: SharedWeights, num_steps: int) -> Tensor:
    """Returns the rank of the token after i at step s of the draft that started at i - s.

    Returns:
        int64 `[steps, n]`: 0 if it is the likeliest one; the largest of `WIDTHS` if it is not among that many.
    """
    batch = pad_batch([text], shared.head.device)
    outputs = draft.unroll(shared.embedding[batch.ids], batch.features, num_steps)
    next_ids = torch.roll(batch.ids[0], -1)
    count = min(WIDTHS[-1], shared.head.shape[0])
    best = [shared.logits(output[0]).topk(count).indices for output in outputs]
    is_found = torch.stack([shared.draft_ids[rows] == next_ids[:, None] for rows in best])
    ranks = torch.where(is_found.any(-1), is_found.long().argmax(-1), WIDTHS[-1])
    return ranks.cpu()


def time_pair(target: ModelSettings, draft: Path, prompt_ids: Sequence[int]) -> TimedPair:
    """Loads both models and times passes over 1 to `MAX_DRAFT` + 1 tokens after a prompt, and a drafted token.

    Args:
        target: The target, with automatic weight format and compute type.
        draft: Folder of a finished draft.
        prompt_ids: The context.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory.
    """
    draft_settings = ModelSettings(str(draft), device=target.device, offline=target.offline)
    models = load_models(resolve_pair(PairSettings(target, "model", draft_settings)))
    assert models.draft_info is not None
    measured = measure_pass_costs({"draft": models}, prompt_ids, MAX_DRAFT)
    costs = PassCosts(
        measured.verify_seconds, measured.draft_seconds["draft"], cold_seconds=measured.cold_seconds["draft"]
    )
    return TimedPair(costs, models.target_info, models.draft_info)
