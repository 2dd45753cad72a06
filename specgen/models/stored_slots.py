"""Where a pass stores its keys and values, and what its queries attend to: the seam between layers and caches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from specgen.models.decoder_spec import DecoderSpec, RotarySpec
from specgen.models.rotary import rotary_table, rotate

Rotations = Mapping[RotarySpec, tuple[Tensor, Tensor]]
"""Cosines and sines `[..., n, 1, size]` of the new positions, by rotary embedding."""


def rotations_at(spec: DecoderSpec, positions: Tensor, dtype: torch.dtype) -> Rotations:
    """Returns the rotations of all layers at positions `[..., n]`."""
    dtype = torch.float32 if spec.rotates_in_float32 else dtype
    specs = dict.fromkeys(layer.rotary for layer in spec.layers if layer.rotary is not None)
    tables = {rotary: rotary_table(rotary, positions, dtype) for rotary in specs}
    return {rotary: (cos[..., None, :], sin[..., None, :]) for rotary, (cos, sin) in tables.items()}


class KvSlots:
    """Stores keys and values of a pass, and attends."""

    def rotate_and_attend(
        self, layer: int, heads: Tensor, values: Tensor, table: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Rotates queries and keys, and does what `attend` does.

        Args:
            layer: Index of the layer.
            heads: Queries and keys side by side, `[..., n, heads + kv_heads, head_size]`. They may be overwritten.
            values: `[..., n, kv_heads, head_size]`.
            table: Cosines and sines of the new positions; None: nothing is rotated.
        """
        rotated, num_kv_heads = heads if table is None else rotate(heads, table), values.shape[-2]
        num_heads = heads.shape[-2] - num_kv_heads
        queries, keys = rotated.narrow(-2, 0, num_heads), rotated.narrow(-2, num_heads, num_kv_heads)
        return self.attend(layer, queries, keys, values)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores new keys and values of a layer, and attends with its queries.

        Args:
            layer: Index of the layer.
            queries: `[..., n, heads, head_size]`, rotated.
            keys: `[..., n, kv_heads, head_size]`, rotated.
            values: `[..., n, kv_heads, head_size]`.

        Returns:
            `[..., n, heads * head_size]`.
        """
        raise NotImplementedError


class StoredSlots(KvSlots):
    """Keys and values of one text, `[kv_heads, capacity, head_size]` per layer.

    A layer with a window stores all positions, too, and attends to the last ones only: so any number of tokens can be
    removed again.

    Args:
        spec: The decoder.
        like: A tensor of the type and device it computes in.
    """

    def __init__(self, spec: DecoderSpec, like: Tensor) -> None:
        self._spec = spec
        self._like = like.new_empty(0)
        self._group = spec.num_heads // spec.num_kv_heads
        self.release()

    def release(self) -> None:
        """Frees the memory; the next pass begins at position 0."""
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._tables: Rotations = {}

    def grow(self, capacity: int, num_kept: int) -> None:
        """Moves the first `num_kept` positions to new tensors with room for `capacity`.

        It moves one tensor at a time, so that the old and the new cache are never both whole.
        """
        spec, like = self._spec, self._like
        # Zeros: masked values are multiplied by 0, and 0 times NaN is NaN.
        shape = (spec.num_kv_heads, capacity, spec.head_size)
        if not self._keys:
            self._keys = [like.new_empty(0, 0, 0)] * len(spec.layers)
            self._values = list(self._keys)
        for tensors in (self._keys, self._values):
            for index in range(len(spec.layers)):
                larger = like.new_zeros(shape)
                if num_kept:
                    larger[:, :num_kept] = tensors[index][:, :num_kept]
                tensors[index] = larger
        self._tables = rotations_at(spec, torch.arange(capacity, device=like.device), like.dtype)
