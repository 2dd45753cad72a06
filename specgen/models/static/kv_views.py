"""Describes to fused kernels where the rows of a pass are, what they see, and where keys and values are stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Visible:
    """Where the rows of a pass are, and what they see.

    Args:
        positions: int64 `[rows]`, where their keys and values are stored.
        rotated: int64 `[rows]`, where they are in their own text.
        bucket: They see nothing from this position on.
        tree_start: int64 `[1]`, positions before the tree, if they are rows of one.
        tree_sees: int64 `[windows, rows, rows]`, which rows of the tree each row sees, by window.
        windows: The windows of `tree_sees`.
    """

    positions: Tensor
    rotated: Tensor
    bucket: int
    tree_start: Tensor | None = None
    tree_sees: Tensor | None = None
    windows: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """The cache of a layer.

    Args:
        keys: `[kv_heads, capacity, head_size]`.
        values: Likewise.
        table: Cosines and sines `[capacity, ..., size]`; None: the layer does not rotate.
        window: Of the layer.
    """

    keys: Tensor
    values: Tensor
    table: tuple[Tensor, Tensor] | None
    window: int | None
