"""A key-value cache at fixed addresses, addressed by positions that only the device knows.

A pass over n tokens then consists of the same operations on the same tensors wherever in the text it is, so it can be
recorded once and replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.static.inputs import MAX_ROWS
from specgen.models.static.kv_views import StoredLayer, Visible
from specgen.models.static.trees import TreeInputs
from specgen.models.stored_slots import Rotations, StoredSlots


class TensorSlots(StoredSlots):
    """Keys and values at fixed addresses until the cache grows. After a failure to grow, call `release`."""

    def release(self) -> None:
        """As in `StoredSlots`."""
        super().release()
        self._columns = torch.empty(0, dtype=torch.int64, device=self._like.device)
        self._positions, self._bucket = self._columns, 0
        self._tree: TreeInputs | None = None
        self._biases: dict[int | None, Tensor] = {}

    def grow(self, capacity: int, num_kept: int) -> None:
        """As in `StoredSlots`."""
        super().grow(capacity, num_kept)
        self._columns = torch.arange(capacity, device=self._like.device)

    def clear(self, first: int) -> None:
        """Overwrites the keys and values from a position on, which may not be finite."""
        for tensor in (*self._keys, *self._values):
            tensor[:, first:].zero_()

    def begin(self, positions: Tensor, bucket: int, tree: TreeInputs | None = None) -> Rotations:
        """Prepares a pass.

        Args:
            positions: `[n]` of the new tokens.
            bucket: The pass attends to the cache's first positions, this many.
            tree: The new tokens are rows of this tree.
        """
        self._positions, self._bucket, self._tree = positions, bucket, tree
        self._biases = {}
        rotated = positions if tree is None else tree.positions[: positions.shape[0]]
        return {
            rotary: (cos.index_select(0, rotated), sin.index_select(0, rotated))
            for rotary, (cos, sin) in self._tables.items()
        }

    def visible(self, positions: Tensor, bucket: int, tree: TreeInputs | None) -> Visible:
        """Returns where the rows of a pass are and what they see, for fused kernels; arguments as in `begin`."""
        if tree is None:
            return Visible(positions, positions, bucket)
        rotated = tree.positions[: positions.shape[0]]
        return Visible(positions, rotated, bucket, tree.start, tree.sees, tree.windows)

    def stored(self) -> list[StoredLayer]:
        """Returns the cache of each layer, for fused kernels."""
        return [
            StoredLayer(keys, values, None if layer.rotary is None else self._tables[layer.rotary], layer.window)
            for keys, values, layer in zip(self._keys, self._values, self._spec.layers, strict=True)
        ]

    def keep_path(self, tree: TreeInputs) -> None:
        """Moves the path of a tree to the positions after the text."""
        tree.keep_path([tensor.transpose(0, 1) for tensor in (*self._keys, *self._values)])

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `KvSlots`."""
        self._keys[layer].index_copy_(1, self._positions, keys.transpose(0, 1))
        self._values[layer].index_copy_(1, self._positions, values.transpose(0, 1))
        seen_keys, seen_values = self._keys[layer][:, : self._bucket], self._values[layer][:, : self._bucket]
        bias = self._bias(self._spec.layers[layer].window)
        num_new, num_heads, size = queries.shape
        grouped = queries.view(num_new, -1, self._group, size).permute(1, 2, 0, 3)
        if self._spec.attention_soft_cap is not None:
            attended = self._attend_capped(grouped, seen_keys, seen_values, bias)
        elif num_new <= MAX_ROWS:
            # The heads of a group become rows of one head: every kernel takes that, and none copies the keys.
            rows = grouped.reshape(1, -1, self._group * num_new, size)
            attended = functional.scaled_dot_product_attention(
                rows, seen_keys[None], seen_values[None], attn_mask=bias, scale=self._spec.attention_scale
            ).view(-1, self._group, num_new, size)
        else:
            attended = functional.scaled_dot_product_attention(
                grouped,
                seen_keys[:, None].expand(-1, self._group, -1, -1),
                seen_values[:, None].expand(-1, self._group, -1, -1),
                attn_mask=bias,
                scale=self._spec.attention_scale,
            )
        return attended.permute(2, 0, 1, 3).reshape(num_new, num_heads * size)

    def _attend_capped(self, grouped: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Computes attention with capped scores, for `[kv_heads, group, n, head_size]`. No fused kernel has them."""
        cap = self._spec.attention_soft_cap
        assert cap is not None
        rows = grouped.flatten(1, 2)
        scores = rows @ keys.transpose(1, 2) * self._spec.attention_scale
        scores = (scores / cap).tanh() * cap + bias
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype)
        return (weights @ values).view(grouped.shape)

    def _bias(self, window: int | None) -> Tensor:
        """Returns what is added to the scores: 0 where a token attends, else the type's lowest value.

        Minus infinity would make a padding row NaN whose window lies after the bucket.
        Its shape is `[n, bucket]`, or `[group * n, bucket]` where heads are rows; it is made once a pass.
        """
        if window not in self._biases:
            columns, rows = self._columns[: self._bucket], self._positions[:, None]
            if self._tree is not None:
                is_hidden = self._tree.hidden(columns, window, rows.shape[0])
            else:
                is_hidden = columns > rows
                if window is not None:
                    is_hidden |= columns <= rows - window
            bias = self._like.new_zeros(is_hidden.shape).masked_fill_(is_hidden, torch.finfo(self._like.dtype).min)
            heads_are_rows = rows.shape[0] <= MAX_ROWS or self._spec.attention_soft_cap is not None
            self._biases[window] = bias.repeat(self._group, 1) if heads_are_rows else bias
        return self._biases[window]
