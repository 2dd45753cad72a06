"""Implements the accept rule: how many draft tokens are kept, and the target's own token after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specgen.core.events import DraftSource
from specgen.core.settings import Verification
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import TokenDistributions
from specgen.engine.transfer import is_on_host


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens and the distributions they were drawn from.

    Args:
        ids: `[drafted]` int64.
        probs: `[drafted, vocab]`; `ids[i]` was drawn from row i, after all processors. None if nothing was drawn:
            the draft of a greedy model or of lookup is a point mass at `ids`.
        source: What made it.
        is_finite: `[]` or `[1]` bool: the draft model's logits were finite; None if that was checked already.
        is_warmup: A pass of the draft model was slower than later ones of its size.
        recording_failure: Why the draft model's passes can't be recorded, once, if they can't.
        parents: Of a draft that branches, as in `DraftTree`; row i of `probs` is the distribution that `ids[i]` was
            drawn from after the tokens with the same parent before it. None: a chain.
        num_passes: Passes of the draft model; None: one for each token.
        pass_rows: The tokens of each of these passes, if they are known. The first one reads the end of the text.
    """

    ids: Tensor
    probs: Tensor | None = None
    source: DraftSource = "model"
    is_finite: Tensor | None = None
    is_warmup: bool = False
    recording_failure: str | None = None
    parents: tuple[int, ...] | None = None
    num_passes: int | None = None
    pass_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying a draft.

    Args:
        num_accepted: `[]` int64, number of draft tokens to keep.
        target_id: `[]` int64, the target's own token after them: correction, or bonus if all were kept.
    """

    num_accepted: Tensor
    target_id: Tensor


class Rows(Protocol):
    """Distributions of a target at the positions of a draft."""

    def row(self, index: int) -> TokenDistributions:
        """Returns one row: that after the text for 0, that after token i of the draft for i + 1."""


def verify(target: TokenDistributions, draft: Draft, randomness: Randomness, rule: Verification = "block") -> Verdict:
    """Keeps a prefix of the draft that the target accepts, and adds one token of the target's own.

    The resulting text has exactly the target's distribution, for any draft and either rule.
    Source: Leviathan et al. 2023 (arXiv:2211.17192), Algorithm 1; Chen et al. 2023 (arXiv:2302.01318);
    for `block` Sun et al. 2024 (arXiv:2403.10444).

    Args:
        target: Distributions at `drafted + 1` positions.
        draft: The draft; may be empty.
        randomness: Used for a sampling target only.
        rule: `token` verifies token by token; `block` verifies the draft as a whole and keeps at least as many tokens
            on average. They differ for sampled drafts only, not for point masses.
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
    """Keeps the longest prefix that is accepted; each prefix is decided independently of the shorter ones.

    With w(i) = min(1, w(i-1) * target / draft) and R(i) the mass of max(w(i) * target - draft, 0) at the next
    position, prefix i < k is accepted with probability R / (R + 1 - w), the whole draft with probability w(k).
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
    # Where both terms are 0 the next token is certainly kept, and this decision does not matter.
    probabilities = torch.cat([torch.where(gap > 0, mass / torch.where(gap > 0, gap, 1.0), 1.0), weight[num_drafted:]])
    lengths = torch.arange(1, num_drafted + 1, device=ids.device)
    num_accepted = (randomness.accept(probabilities).to(lengths.device) * lengths).amax()
    row = target_probs.index_select(0, num_accepted.view(1)).squeeze(0)
    is_whole = num_accepted == num_drafted
    of_draft = draft_probs.index_select(0, num_accepted.clamp(max=num_drafted - 1).view(1)).squeeze(0).to(row.dtype)
    scaled = torch.where(is_whole, row, weight.index_select(0, num_accepted.view(1)).squeeze(0) * row)
    rest_at = residual_distribution(scaled, torch.where(is_whole, 0.0, 1.0).to(row.dtype) * of_draft)
    return Verdict(num_accepted, randomness.draw(rest_at))


def verify_block_by_rows(target: Rows, draft: Draft, randomness: Randomness) -> tuple[int, int]:
    """Does what `verify` does by the rule `block` for a drawn draft in host memory, and skips what decides nothing.

    The longest accepted prefix is kept, so prefixes are decided from the longest on, by the probabilities in
    `_verify_block`. Those with a token that the target never writes have the weight 0.

    Returns:
        The number of kept tokens, and the target's own token after them.
    """
    assert draft.probs is not None, "a draft that was not drawn is verified token by token"
    num_drafted, rows, weights = draft.ids.shape[0], list[Tensor](), [1.0]
    while len(rows) < num_drafted and weights[-1] > 0:
        place = len(rows)
        rows.append(_probs_of(target.row(place)))
        one = Draft(draft.ids[place : place + 1], draft.probs[place : place + 1])
        weights.append(min(1.0, weights[-1] * float(likelihood_ratios(rows[-1], one))))
    for length in range(len(weights) - 1, -1, -1):
        weight = weights[length]
        if weight == 0:
            continue
        if length == num_drafted:
            if _is_accepted(weight, randomness):
                return length, int(randomness.draw(_probs_of(target.row(length))[0]))
            continue
        rest = (weight * rows[length][0] - draft.probs[length].to(rows[length].dtype)).clamp_(min=0.0)
        mass = float(rest.sum())
        gap = mass + 1 - weight
        if length == 0 or _is_accepted(mass / gap if gap > 0 else 1.0, randomness):
            # If both distributions are equal up to rounding, no mass is left.
            return length, int(randomness.draw(rest.div_(mass) if mass > 0 else rows[length][0]))
    raise AssertionError("a prefix of no tokens is always accepted")


def _probs_of(row: TokenDistributions) -> Tensor:
    assert row.probs is not None, "a greedy target is verified token by token"
    return row.probs


def _is_accepted(probability: float, randomness: Randomness) -> bool:
    return bool(randomness.accept(torch.tensor([probability], dtype=torch.float64)))


def acceptance_probabilities(target_probs: Tensor, draft: Draft) -> Tensor:
    """Returns `min(1, target / draft)` at each drafted token, `[drafted]`.

    A point-mass draft has probability 1 at its token, so its acceptance is the target's probability.

    Raises:
        AssertionError: A drafter gives probability 0 to a token it drew (checked on CPU, where reading is free).
    """
    return likelihood_ratios(target_probs, draft).clamp(max=1.0)


def likelihood_ratios(target_probs: Tensor, draft: Draft) -> Tensor:
    """Returns `target / draft` at each drafted token, `[drafted]`; see `acceptance_probabilities`."""
    columns = draft.ids.unsqueeze(-1)
    of_target = target_probs.gather(-1, columns).squeeze(-1)
    if draft.probs is None:
        return of_target
    of_draft = draft.probs.gather(-1, columns).squeeze(-1)
    if is_on_host(of_draft):
        assert bool((of_draft > 0).all()), "a drafter gave probability 0 to a token it proposed"
    return of_target / of_draft


def residual_distribution(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Returns the distribution of the correction, `[vocab]`: `max(target - draft, 0)`, normalized.

    With `draft_probs` zero everywhere it is the target's own distribution, that of the bonus token. If the two
    distributions are equal up to rounding, it is the target's too (a rejection then has probability zero anyway).
    """
    return normalized((target_probs - draft_probs).clamp(min=0.0), target_probs)


def normalized(rest: Tensor, otherwise: Tensor) -> Tensor:
    """Divides `rest` by its sum; returns `otherwise` where that is 0. Needs no host read."""
    total = rest.sum()
    return torch.where(total > 0, rest / torch.where(total > 0, total, 1.0), otherwise)


def _draft_distribution_at(position: Tensor, draft: Draft, like: Tensor) -> Tensor:
    """Returns the draft's distribution at `position`, or zeros after the draft's end. Needs no host read."""
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
