"""Computes which positions the rows of a tree see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, depths_of


def tree_mask(parents: Sequence[int], num_new: int, text: tuple[int, int], window: int | None) -> Tensor:
    """Returns what the last rows of a tree see: the text, their ancestors and themselves.

    A row is `depth` positions after the end of the text, wherever its keys are stored.

    Args:
        parents: Of all rows, as in `TreeModel.tree_logits`.
        num_new: How many rows, from the end.
        text: First and last position of the text that is stored before the rows; the last one is not included.
        window: Positions that a row sees, its own included; None: all.

    Returns:
        bool `[num_new, positions of the text + rows]`.
    """
    start, length = text
    sees = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent != ROOT:
            sees[row] |= sees[parent]
    sees = torch.cat([torch.ones(num_new, length - start, dtype=torch.bool), sees[-num_new:]], dim=1)
    if window is not None:
        at = length + torch.tensor(depths_of(parents))
        sees &= torch.cat([torch.arange(start, length), at]) > at[-num_new:, None] - window
    return sees
