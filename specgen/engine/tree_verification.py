"""Verifies a draft that branches: which of its paths is kept, and the target's own token after it."""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import TokenDistributions
from specgen.engine.verification import Draft, acceptance_probabilities, residual_distribution


def verify_tree(
    target: TokenDistributions, draft: Draft, tree: DraftTree, randomness: Randomness
) -> tuple[list[int], int]:
    """Keeps a path of the draft that the target accepts, and adds one token of the target's own.

    Tokens with the same parent are tried in their order, each against what the rejected ones before it left of the
    target's distribution. The text has exactly the target's distribution if each token was drawn from its row of
    `draft.probs`, and if nothing but earlier draws decided which tokens were drawn.
    Source: Miao et al. 2024 (SpecInfer, arXiv:2305.09781), Algorithm 2; Chen et al. 2024 (Sequoia, arXiv:2402.12374)
    for draws without replacement, where the row of a token has no mass at those before it.

    Args:
        target: Distributions `[drafted + 1]`: row 0 after the text, row i + 1 after token i.
        draft: Its tokens, on the target's device.
        tree: The draft's tokens and parents.
        randomness: Used for a sampling target only.

    Returns:
        Indices of the kept tokens, and the target's token after them.
    """
    if target.probs is None:
        return matching_path(tree, target.ids.tolist())
    path: list[int] = []
    index = ROOT
    while True:
        probs = target.probs[index + 1]
        accepted, probs = _accepted_child(probs, draft, tree.children(index), randomness)
        if accepted is None:
            return path, int(randomness.draw(probs))
        path.append(accepted)
        index = accepted


def matching_path(tree: DraftTree, target_ids: list[int]) -> tuple[list[int], int]:
    """Follows the target's own tokens through the tree, for point masses.

    Args:
        tree: The draft.
        target_ids: `[drafted + 1]`: the target's token after the text, and after each token of the draft.
    """
    path: list[int] = []
    own = target_ids[0]
    while (child := tree.child(path[-1] if path else ROOT, own)) is not None:
        path.append(child)
        own = target_ids[child + 1]
    return path, own


def _accepted_child(
    probs: Tensor, draft: Draft, children: list[int], randomness: Randomness
) -> tuple[int | None, Tensor]:
    """Tries tokens with the same parent; returns the accepted one, or what they left of the target's distribution."""
    for child in children:
        token = draft.ids[child : child + 1]
        row = None if draft.probs is None else draft.probs[child : child + 1]
        if bool(randomness.accept(acceptance_probabilities(probs[None], Draft(token, row)))):
            return child, probs
        proposed = torch.zeros_like(probs).index_fill_(0, token, 1.0) if row is None else row[0].to(probs.dtype)
        probs = residual_distribution(probs, proposed)
    return None, probs
