"""Verifies a draft that branches: which of its paths is kept, and the target's own token after it."""

from __future__ import annotations

from torch import Tensor

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.engine.randomness import Randomness
from specgen.engine.verification import Draft, Rows, acceptance_probabilities, normalized, residual_distribution


def verify_tree(target: Rows, draft: Draft, tree: DraftTree, randomness: Randomness) -> tuple[list[int], int]:
    """Keeps a path of the draft that the target accepts, and adds one token of the target's own.

    Tokens with the same parent are tried in their order, each against what the rejected ones before it left of the
    target's distribution. The text has exactly the target's distribution if each token was drawn from its row of
    `draft.probs`, and if nothing but earlier draws decided which tokens were drawn.
    Source: Miao et al. 2024 (SpecInfer, arXiv:2305.09781), Algorithm 2; Chen et al. 2024 (Sequoia, arXiv:2402.12374)
    for draws without replacement, where the row of a token has no mass at those before it. On a chain it is
    Algorithm 1 of Leviathan et al. 2023 (arXiv:2211.17192).

    Args:
        target: Only the rows along the path are asked for, each once.
        draft: Its tokens, on the target's device.
        tree: The draft's tokens and parents.
        randomness: Used for a sampling target only.

    Returns:
        Indices of the kept tokens, and the target's token after them.
    """
    path: list[int] = []
    index = ROOT
    while True:
        row = target.row(index + 1)
        if row.probs is None:
            own = int(row.ids)
            accepted = tree.child(index, own)
        else:
            accepted, rest = _accepted_child(row.probs[0], draft, tree.children(index), randomness)
            own = int(randomness.draw(rest)) if accepted is None else tree.ids[accepted]
        if accepted is None:
            return path, own
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
        probs = _without(probs, token) if row is None else residual_distribution(probs, row[0].to(probs.dtype))
    return None, probs


def _without(probs: Tensor, token: Tensor) -> Tensor:
    """Computes `residual_distribution` for a draft that is a point mass at `token` `[1]`."""
    return normalized(probs.index_fill(0, token, 0.0), probs)
