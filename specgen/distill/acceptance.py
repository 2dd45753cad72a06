"""A draft and held-out texts in, acceptance as the real loop would have it out, and the throughput it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specgen.distill.draft import Draft
from specgen.distill.texts import Text
from specgen.distill.training import Shared, batch_of

MAX_DRAFT = 6


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What greedy drafts of each length 1 to `MAX_DRAFT` did on greedy texts.

    Args:
        num_accepted, num_tested, num_rounds: One number per draft length.
        by_step: Share of positions at which step s of a draft begun s positions before is right.
    """

    num_accepted: tuple[int, ...]
    num_tested: tuple[int, ...]
    num_rounds: tuple[int, ...]
    by_step: tuple[float, ...]

    def alpha(self, length: int) -> float:
        """Accepted per tested token at a draft length."""
        return self.num_accepted[length - 1] / max(1, self.num_tested[length - 1])

    def tokens_per_round(self, length: int) -> float:
        """Block efficiency at a draft length, the target's token included."""
        return 1 + self.num_accepted[length - 1] / max(1, self.num_rounds[length - 1])


@torch.no_grad()
def measure(draft: Draft, texts: Sequence[Text], shared: Shared, num_steps: int = MAX_DRAFT) -> Acceptance:
    """Replay the loop on texts the target wrote greedily: what it would draft is compared with what follows.

    A chain runs along the text's own tokens, which is exact: behind the first token that differs nothing counts.
    """
    accepted, tested, rounds = ([0] * num_steps for _ in range(3))
    right, positions = [0] * num_steps, [0] * num_steps
    for text in texts:
        is_right = _right(draft, text, shared, num_steps)
        first, end = text.num_prompt - 1, len(text.ids) - 1
        for step in range(num_steps):
            right[step] += int(is_right[step, first + step : end].sum())
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
    by_step = tuple(r / max(1, n) for r, n in zip(right, positions, strict=True))
    return Acceptance(tuple(accepted), tuple(tested), tuple(rounds), by_step)


def _right(draft: Draft, text: Text, shared: Shared, num_steps: int) -> Tensor:
    """bool `[steps, n]`: whether step s of the draft that began at i - s proposes the token behind i."""
    batch = batch_of([text], shared.head.device)
    outputs = draft.unroll(shared.embedding[batch.ids], batch.features, num_steps)
    following = torch.roll(batch.ids[0], -1)
    best = [functional.linear(output[0], shared.head).argmax(-1) for output in outputs]
    return torch.stack([shared.draft_ids[rows] == following for rows in best]).cpu()


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: `draft` per drafted token, `passes[n - 1]` for a pass of the target over n tokens."""

    draft: float
    passes: tuple[float, ...]

    def speedup(self, acceptance: Acceptance, length: int) -> float:
        """Predicted tokens per second over the target's alone at a draft length.

        Source: Leviathan et al. 2023, arXiv:2211.17192, Theorem 3.8, with the pass over length + 1 tokens at its price.
        """
        seconds = length * self.draft + self.passes[min(length, len(self.passes) - 1)]
        return acceptance.tokens_per_round(length) * self.passes[0] / seconds

    def best(self, acceptance: Acceptance) -> tuple[int, float]:
        """The draft length that pays most, and its speedup."""
        lengths = range(1, len(acceptance.num_rounds) + 1)
        return max(((n, self.speedup(acceptance, n)) for n in lengths), key=lambda entry: entry[1])
