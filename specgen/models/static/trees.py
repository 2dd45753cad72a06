"""Inputs of recorded passes over trees: where each row is, and what it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.draft_tree import depths_of
from specgen.engine.transfer import moved
from specgen.models.static.inputs import MAX_ROWS
from specgen.models.tree_mask import tree_mask


class TreeInputs:
    """The shape of a tree at fixed addresses: the graph of a pass is the same for all trees of as many rows.

    Row i of a tree after `start` positions is stored at position `start + i`, and rotated by its depth.

    Args:
        windows: Of the decoder's layers.
        device: The device that the passes run on.
    """

    def __init__(self, windows: Sequence[int | None], device: torch.device) -> None:
        self.windows = tuple(dict.fromkeys(windows))
        sizes = [1, MAX_ROWS, MAX_ROWS, len(self.windows) * MAX_ROWS**2]
        # One tensor, so that one copy moves them to the device.
        self._all = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.start, self.positions, self._path, sees = torch.split(self._all, sizes)
        self.sees = sees.view(-1, MAX_ROWS, MAX_ROWS)
        """1 where a row sees a row of the tree: `[windows, rows, rows]`."""
        self._rows = torch.arange(MAX_ROWS, device=device)

    def write(self, start: int, parents: Sequence[int], num_new: int) -> None:
        """Sets the shape. Waits for nothing.

        Args:
            start: Positions before the tree.
            parents: Of all rows, as in `TreeModel.tree_logits`.
            num_new: How many rows are computed, from the end.
        """
        inputs = torch.zeros(self._all.shape[0], dtype=torch.int64)
        inputs[0] = start
        inputs[1 : 1 + num_new] = torch.tensor(depths_of(parents)[-num_new:]) + start
        sees = inputs[1 + 2 * MAX_ROWS :].view(self.sees.shape)
        for index, window in enumerate(self.windows):
            sees[index, :num_new, : len(parents)] = tree_mask(parents, num_new, (start, start), window)
        self._all.copy_(moved(inputs, self._all.device), non_blocking=True)

    def write_path(self, start: int, rows: Sequence[int]) -> None:
        """Sets the path that is kept. Waits for nothing."""
        inputs = torch.zeros(1 + 2 * MAX_ROWS, dtype=torch.int64)
        inputs[0] = start
        inputs[1 + MAX_ROWS :] = torch.tensor([*rows, *range(len(rows), MAX_ROWS)])
        self._all[: len(inputs)].copy_(moved(inputs, self._all.device), non_blocking=True)

    def hidden(self, columns: Tensor, window: int | None, num_rows: int) -> Tensor:
        """Returns which positions `columns` `[bucket]` the rows don't see, bool `[num_rows, bucket]`."""
        offsets = columns - self.start
        sees = self.sees[self.windows.index(window), :num_rows]
        is_ancestor = sees.index_select(1, offsets.clamp(0, MAX_ROWS - 1)) > 0
        is_ancestor &= (offsets >= 0) & (offsets < MAX_ROWS)
        is_text = offsets < 0
        if window is not None:
            is_text = is_text & (columns > self.positions[:num_rows, None] - window)
        return ~(is_ancestor | is_text)

    def keep_path(self, stored: Sequence[Tensor]) -> None:
        """Moves the rows of the path to the positions after the text, in each tensor `[positions, ...]`."""
        path, places = self.start + self._path, self.start + self._rows
        for tensor in stored:
            tensor.index_copy_(0, places, tensor.index_select(0, path))
