"""Launches the kernels of attention for few rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specgen.models.decoder_spec import DecoderSpec
from specgen.models.fused.support import launch_options
from specgen.models.static.kv_views import StoredLayer, Visible

if TYPE_CHECKING:
    from specgen.models.decoder import Attention
    from specgen.models.fused.products import Parts

PART = 128
"""Positions of a part."""
CHUNK = 16
"""Parts that are added at once."""
TILE = 16
"""Rows of a tile: query heads of a group, for one token or several."""


class FewRowsAttention:
    """Attention of few rows.

    Args:
        spec: The decoder; its norms of queries and keys, if any, are by head.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._padded = 1 << (spec.head_size - 1).bit_length()
        self._group = spec.num_heads // spec.num_kv_heads

    def attend(
        self, projected: Parts, attention: Attention, visible: Visible, stored: StoredLayer, *, is_split: bool = False
    ) -> Tensor:
        """Stores keys and values, and attends.

        Args:
            projected: Queries, keys and values, `[parts, rows, (heads + 2 kv_heads) * head_size]`.
            attention: Has the norms of queries and keys.
            visible: As in `FusedLayers.run`.
            stored: Cache of the layer.
            is_split: What is returned is in the order of `split_inputs`.

        Returns:
            `[rows, heads * head_size]`.
        """
        queries = self._store(projected, attention, visible, stored)
        spec, rows, num_parts = self._spec, queries.shape[0], -(-visible.bucket // PART)
        shape = (num_parts, rows, spec.num_heads)
        sums = queries.new_empty(*shape, spec.head_size, dtype=torch.float32)
        maxima, weights = queries.new_empty(2, *shape, dtype=torch.float32)
        from specgen.models.fused.kernels.attention import attend_parts, sum_parts

        tile = max(TILE, 1 << (self._group - 1).bit_length())
        tokens = tile // self._group
        is_tree, cap = visible.tree_sees is not None, spec.attention_soft_cap
        sees, num_nodes = visible.positions, 1
        if visible.tree_sees is not None:
            sees, num_nodes = visible.tree_sees[visible.windows.index(stored.window)], visible.tree_sees.shape[-1]
        attend_parts[(spec.num_kv_heads, -(-rows // tokens), num_parts)](
            queries,
            stored.keys,
            stored.values,
            visible.rotated if is_tree else visible.positions,
            visible.positions if visible.tree_start is None else visible.tree_start,
            sees,
            sums,
            maxima,
            weights,
            spec.attention_scale * (math.log2(math.e) if cap is None else 1.0),
            1.0 if cap is None else cap,
            stored.keys.stride(0),
            rows,
            WINDOW=stored.window or 0,
            HAS_CAP=cap is not None,
            HAS_TREE=is_tree,
            TREE_ROWS=num_nodes,
            GROUP=self._group,
            TOKENS=tokens,
            TILE=tile,
            SIZE=spec.head_size,
            SIZE_PADDED=self._padded,
            PART=PART,
            BLOCK=64 if self._padded > 128 else PART,
            num_warps=4,
            num_stages=2,
            **launch_options(queries.device),
        )
        attended = torch.empty_like(queries)
        sum_parts[(rows, spec.num_heads)](
            sums,
            maxima,
            weights,
            attended,
            num_parts,
            SIZE=spec.head_size,
            SIZE_PADDED=self._padded,
            CHUNK=CHUNK,
            IS_SPLIT=is_split,
            num_warps=4 if self._padded >= 128 else 2,
            **launch_options(queries.device),
        )
        return attended.view(rows, -1)

    def _store(self, projected: Parts, attention: Attention, visible: Visible, stored: StoredLayer) -> Tensor:
        """Stores keys and values. Returns the queries, `[rows, heads, head_size]`, normed and rotated."""
        from specgen.models.fused.kernels.rows import rotate_and_store

        spec, parts, bias = self._spec, projected.tensor, projected.bias
        rows = parts.shape[1]
        queries = stored.keys.new_empty(rows, spec.num_heads, spec.head_size)
        cosines, sines = (queries, queries) if stored.table is None else stored.table
        q_norm, k_norm = attention.q_norm, attention.k_norm
        rotate_and_store[(rows, spec.num_heads + 2 * spec.num_kv_heads)](
            parts,
            parts if bias is None else bias,
            parts if q_norm is None else q_norm.weight,
            parts if k_norm is None else k_norm.weight,
            cosines,
            sines,
            visible.positions,
            visible.rotated,
            queries,
            stored.keys,
            stored.values,
            rows * parts.shape[2],
            stored.keys.stride(0),
            spec.norm_epsilon,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            NUM_PARTS=projected.count,
            HAS_BIAS=bias is not None,
            HAS_NORM=q_norm is not None,
            ROTATED=0 if stored.table is None else cosines.shape[-1],
            SIZE=spec.head_size,
            BLOCK=self._padded,
            num_warps=2 if self._padded >= 128 else 1,
            **launch_options(queries.device),
        )
        return queries
