"""The one accept rule. Target laws and a draft in, the number of kept tokens and the target's own token out; pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.core.events import DraftSource
from specgen.core.settings import Verification
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import TokenDistributions


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens and the laws they were drawn from.

    Args:
        ids: `[drafted]` int64.
        probs: `[drafted, vocab]`, row i the law `ids[i]` was really drawn from, after all processors.
            None where nothing was drawn: a greedy draft model or a lookup is a point mass at `ids`.
        source: What made it.
    """

    ids: Tensor
    probs: Tensor | None = None
    source: DraftSource = "model"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target says of a draft.

    Args:
        num_accepted: `[]` int64, the first so many draft tokens are kept.
        target_id: `[]` int64, the target's own token after them: correction, or bonus if all were kept.
    """

    num_accepted: Tensor
    target_id: Tensor


def verify(target: TokenDistributions, draft: Draft, randomness: Randomness, rule: Verification = "block") -> Verdict:
    """Keep a prefix of the draft that the target accepts, and add one token of the target's.

    The text that results has the target's law exactly, whatever the draft and the rule.
    Source: Leviathan et al. 2023 (arXiv:2211.17192), Algorithm 1; Chen et al. 2023 (arXiv:2302.01318);
    for `block` Sun et al. 2024 (arXiv:2403.10444).

    Args:
        target: Laws at `drafted + 1` positions.
        draft: The draft; may be empty.
        randomness: Used for a sampling target only.
        rule: `token` decides token by token; `block` weighs the draft as a whole and keeps at least as many on
            average. They differ for drawn drafts only: a point mass leaves nothing to weigh.
    """
    num_drafted = draft.ids.shape[0]
    if target.probs is None:
        num_accepted = _length_of_true_prefix(target.ids[:num_drafted] == draft.ids)
        return Verdict(num_accepted, target.ids.index_select(0, num_accepted.view(1)).squeeze(0))
    if rule == "block" and draft.probs is not None and num_drafted > 1:
        return _verify_block(target.probs, draft.ids, draft.probs, randomness)
    probabilities = acceptance_probabilities(target.probs[:num_drafted], draft)
    num_accepted = _length_of_true_prefix(randomness.accept(probabilities))
    target_probs = target.probs.index_select(0, num_accepted.view(1)).squeeze(0)
    draft_probs = _draft_distribution_at(num_accepted, draft, target_probs)
    return Verdict(num_accepted, randomness.draw(residual_distribution(target_probs, draft_probs)))


def _verify_block(target_probs: Tensor, ids: Tensor, draft_probs: Tensor, randomness: Randomness) -> Verdict:
    """Block verification: the longest prefix whose own coin falls right is kept, whatever shorter ones said.

    With w(i) = min(1, w(i-1) * target / draft) and R(i) the mass of max(w(i) * target - draft, 0) at the next
    position, prefix i < k is kept with chance R / (R + 1 - w), the whole draft with chance w(k).
    """
    num_drafted = ids.shape[0]
    ratios = likelihood_ratios(target_probs[:num_drafted], Draft(ids, draft_probs))
    weights = [torch.ones((), dtype=ratios.dtype, device=ratios.device)]
    for position in range(num_drafted):
        weights.append((weights[-1] * ratios[position]).clamp(max=1.0))
    weight = torch.stack(weights)
    rest = weight[:num_drafted, None] * target_probs[:num_drafted] - draft_probs.to(target_probs.dtype)
    mass = rest.clamp(min=0.0).sum(dim=-1)[1:]
    gap = mass + 1 - weight[1:num_drafted]
    # Where both are nothing the next token is sure to be kept, and this coin does not matter.
    chances = torch.cat([torch.where(gap > 0, mass / torch.where(gap > 0, gap, 1.0), 1.0), weight[num_drafted:]])
    lengths = torch.arange(1, num_drafted + 1, device=ids.device)
    num_accepted = (randomness.accept(chances).to(lengths.device) * lengths).amax()
    row = target_probs.index_select(0, num_accepted.view(1)).squeeze(0)
    is_whole = num_accepted == num_drafted
    of_draft = draft_probs.index_select(0, num_accepted.clamp(max=num_drafted - 1).view(1)).squeeze(0).to(row.dtype)
    scaled = torch.where(is_whole, row, weight.index_select(0, num_accepted.view(1)).squeeze(0) * row)
    rest_at = residual_distribution(scaled, torch.where(is_whole, 0.0, 1.0).to(row.dtype) * of_draft)
    return Verdict(num_accepted, randomness.draw(rest_at))


def acceptance_probabilities(target_probs: Tensor, draft: Draft) -> Tensor:
    """`min(1, target / draft)` at each drafted token, `[drafted]`.

    A point-mass draft has probability 1 at its token, so its acceptance is the target's probability.

    Raises:
        AssertionError: A drafter claims probability 0 for a token it drew (checked where looking costs nothing).
    """
    return likelihood_ratios(target_probs, draft).clamp(max=1.0)


def likelihood_ratios(target_probs: Tensor, draft: Draft) -> Tensor:
    """`target / draft` at each drafted token, `[drafted]`; see `acceptance_probabilities`."""
    columns = draft.ids.unsqueeze(-1)
    of_target = target_probs.gather(-1, columns).squeeze(-1)
    if draft.probs is None:
        return of_target
    of_draft = draft.probs.gather(-1, columns).squeeze(-1)
    if of_draft.device.type == "cpu":
        assert bool((of_draft > 0).all()), "a drafter gave probability 0 to a token it proposed"
    return of_target / of_draft


def residual_distribution(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Law of the correction: `max(target - draft, 0)`, normalized. `[vocab]` in, `[vocab]` out.

    With `draft_probs` zero everywhere it is the target's law itself: the bonus token. Where the two laws are equal up
    to rounding nothing is left, and the target's law stands in (a rejection there has probability zero anyway).
    """
    rest = (target_probs - draft_probs).clamp(min=0.0)
    total = rest.sum()
    return torch.where(total > 0, rest / torch.where(total > 0, total, 1.0), target_probs)


def _draft_distribution_at(position: Tensor, draft: Draft, like: Tensor) -> Tensor:
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
