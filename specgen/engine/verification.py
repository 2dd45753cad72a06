"""The one accept rule. Target laws and a draft in, the number of kept tokens and the target's own token out; pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.engine.randomness import Randomness
from specgen.engine.sampling import Laws


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens and the laws they were drawn from.

    Args:
        ids: `[drafted]` int64.
        probs: `[drafted, vocab]`, row i the law `ids[i]` was really drawn from, after all processors.
            None where nothing was drawn: a greedy draft model or a lookup is a point mass at `ids`.
    """

    ids: Tensor
    probs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target says of a draft.

    Args:
        num_accepted: `[]` int64, the first so many draft tokens are kept.
        target_id: `[]` int64, the target's own token after them: correction, or bonus if all were kept.
    """

    num_accepted: Tensor
    target_id: Tensor


def verify(target: Laws, draft: Draft, randomness: Randomness) -> Verdict:
    """Keep the longest prefix of the draft that the target accepts, and add one token of the target's.

    The text that results has the target's law exactly, whatever the draft.
    Source: Leviathan et al. 2023 (arXiv:2211.17192), Algorithm 1; Chen et al. 2023 (arXiv:2302.01318).

    Args:
        target: Laws at `drafted + 1` positions.
        draft: The draft; may be empty.
        randomness: Used for a sampling target only.
    """
    num_drafted = draft.ids.shape[0]
    if target.probs is None:
        num_accepted = _length_of_true_prefix(target.ids[:num_drafted] == draft.ids)
        return Verdict(num_accepted, target.ids.index_select(0, num_accepted.view(1)).squeeze(0))
    probabilities = acceptance_probabilities(target.probs[:num_drafted], draft)
    num_accepted = _length_of_true_prefix(randomness.accept(probabilities))
    target_probs = target.probs.index_select(0, num_accepted.view(1)).squeeze(0)
    draft_probs = _draft_law_at(num_accepted, draft, target_probs)
    return Verdict(num_accepted, randomness.draw(residual_distribution(target_probs, draft_probs)))


def acceptance_probabilities(target_probs: Tensor, draft: Draft) -> Tensor:
    """`min(1, target / draft)` at each drafted token, `[drafted]`.

    A point-mass draft has probability 1 at its token, so its acceptance is the target's probability.

    Raises:
        AssertionError: A drafter claims probability 0 for a token it drew (checked where looking costs nothing).
    """
    columns = draft.ids.unsqueeze(-1)
    of_target = target_probs.gather(-1, columns).squeeze(-1)
    if draft.probs is None:
        return of_target
    of_draft = draft.probs.gather(-1, columns).squeeze(-1)
    if of_draft.device.type == "cpu":
        assert bool((of_draft > 0).all()), "a drafter gave probability 0 to a token it proposed"
    return (of_target / of_draft).clamp(max=1.0)


def residual_distribution(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Law of the correction: `max(target - draft, 0)`, normalized. `[vocab]` in, `[vocab]` out.

    With `draft_probs` zero everywhere it is the target's law itself: the bonus token. Where the two laws are equal up
    to rounding nothing is left, and the target's law stands in (a rejection there has probability zero anyway).
    """
    rest = (target_probs - draft_probs).clamp(min=0.0)
    total = rest.sum()
    return torch.where(total > 0, rest / torch.where(total > 0, total, 1.0), target_probs)


def _draft_law_at(position: Tensor, draft: Draft, like: Tensor) -> Tensor:
    """Draft law at `position`, zero everywhere if the position lies behind the draft. No host read."""
    num_drafted = draft.ids.shape[0]
    if num_drafted == 0:
        return torch.zeros_like(like)
    inside = position.clamp(max=num_drafted - 1).view(1)
    is_inside = (position < num_drafted).to(like.dtype)
    if draft.probs is not None:
        return draft.probs.index_select(0, inside).squeeze(0).to(like.dtype) * is_inside
    return torch.zeros_like(like).index_fill_(0, draft.ids.index_select(0, inside), 1.0) * is_inside


def _length_of_true_prefix(flags: Tensor) -> Tensor:
    return flags.to(torch.int64).cumprod(dim=0).sum()
