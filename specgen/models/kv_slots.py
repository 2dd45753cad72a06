"""Where a pass stores its keys and values, and what its queries attend to: the seam between layers and caches.

A layer computes queries, keys and values; `KvSlots.attend` stores the new ones and attends. `SliceSlots` is the cache
of one text, addressed by positions that the host knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.models.decoder_spec import DecoderSpec, RotarySpec
from specgen.models.rotary import rotary_table

FIRST_CAPACITY = 512
"""Positions of a new cache; it doubles when it is full."""

MAX_SINGLE_ROWS = MAX_DRAFT_TOKENS + 1
"""Tokens of a pass that may attend one by one: the longest draft and the token before it. Longer passes are prompts."""

Rotations = Mapping[RotarySpec, tuple[Tensor, Tensor]]
"""Cosines and sines `[..., n, 1, size]` of the new positions, by rotary embedding."""


def rotations_at(spec: DecoderSpec, positions: Tensor, dtype: torch.dtype) -> Rotations:
    """Returns the rotations of all layers at positions `[..., n]`."""
    dtype = torch.float32 if spec.rotates_in_float32 else dtype
    specs = dict.fromkeys(layer.rotary for layer in spec.layers if layer.rotary is not None)
    tables = {rotary: rotary_table(rotary, positions, dtype) for rotary in specs}
    return {rotary: (cos[..., None, :], sin[..., None, :]) for rotary, (cos, sin) in tables.items()}


class KvSlots(Protocol):
    """Stores keys and values of a pass, and attends."""

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


class StoredSlots:
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


class SliceSlots(StoredSlots):
    """The key-value cache of one text, addressed by positions that the host knows.

    Args:
        spec: As in `StoredSlots`.
        like: As in `StoredSlots`.
        attends_by_row: Attends with each token of a short pass alone, by the kernel of a one-token pass. Then attention
            does not depend on the number of tokens in a pass, bit for bit. It costs about 5 % of a pass over five.
    """

    def __init__(self, spec: DecoderSpec, like: Tensor, attends_by_row: bool = False) -> None:
        super().__init__(spec, like)
        self._attends_by_row = attends_by_row

    def release(self) -> None:
        """As in `StoredSlots`."""
        super().release()
        self._capacity = 0
        self._first = self._last = 0
        self._masks: dict[int | None, Tensor | None] = {}

    def grow(self, capacity: int, num_kept: int) -> None:
        """As in `StoredSlots`."""
        super().grow(capacity, num_kept)
        # Last: after a failure, no tensor is smaller than the capacity, so nothing is lost.
        self._capacity = capacity

    def begin(self, first: int, num_new: int) -> Rotations:
        """Prepares a pass over `num_new` tokens from position `first` on; what was stored after `first` is lost."""
        self._first, self._last = first, first + num_new
        self._masks = {}
        if self._last > self._capacity:
            self.grow(max(FIRST_CAPACITY, 2 * self._capacity, self._last), first)
        return {
            rotary: (cos[self._first : self._last], sin[self._first : self._last])
            for rotary, (cos, sin) in self._tables.items()
        }

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        first, last = self._first, self._last
        self._keys[layer][:, first:last] = keys.transpose(0, 1)
        self._values[layer][:, first:last] = values.transpose(0, 1)
        if self._attends_by_row and last - first <= MAX_SINGLE_ROWS:
            rows = enumerate(torch.split(queries, 1))
            return torch.cat([self._attend(layer, row, first + index) for index, row in rows])
        return self._attend(layer, queries, first)

    def _attend(self, layer: int, queries: Tensor, first: int) -> Tensor:
        """Attends with queries from position `first` on; the keys and values are stored."""
        num_new = queries.shape[0]
        last = first + num_new
        window = self._spec.layers[layer].window
        start = 0 if window is None else max(0, first + 1 - window)
        seen_keys, seen_values = self._keys[layer][:, start:last], self._values[layer][:, start:last]
        mask = None if num_new == 1 else self._mask(window, start)
        rows = queries.transpose(0, 1)
        if self._spec.attention_soft_cap is not None:
            attended = self._attend_capped(rows, seen_keys, seen_values, mask)
        else:
            attended = functional.scaled_dot_product_attention(
                rows[None],
                seen_keys[None],
                seen_values[None],
                attn_mask=mask,
                is_causal=mask is None and num_new > 1,
                scale=self._spec.attention_scale,
                enable_gqa=self._group > 1,
            )[0]
        return attended.transpose(0, 1).reshape(num_new, -1)

    def _attend_capped(self, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Computes attention with capped scores, in the order of transformers (Gemma 2). No fused kernel has them."""
        cap = self._spec.attention_soft_cap
        assert cap is not None
        num_heads, num_new, size = rows.shape
        grouped = rows.reshape(keys.shape[0], self._group * num_new, size)
        scores = (grouped @ keys.transpose(1, 2) * self._spec.attention_scale).view(num_heads, num_new, -1)
        scores = (scores / cap).tanh() * cap
        if mask is None and num_new > 1:
            mask = torch.ones(num_new, num_new, dtype=torch.bool, device=rows.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype)
        return (weights.view(keys.shape[0], self._group * num_new, -1) @ values).view(num_heads, num_new, size)

    def _mask(self, window: int | None, start: int) -> Tensor | None:
        """Returns which positions from `start` on each new token sees, `[n, positions]`; None: plain causal, or all."""
        if window not in self._masks:
            num_new = self._last - self._first
            mask = None
            if num_new > 1 and (self._first or (window is not None and self._last > window)):
                columns = torch.arange(start, self._last, device=self._like.device)
                rows = torch.arange(self._first, self._last, device=self._like.device)[:, None]
                mask = columns <= rows
                if window is not None:
                    mask &= columns > rows - window
            self._masks[window] = mask
        return self._masks[window]
