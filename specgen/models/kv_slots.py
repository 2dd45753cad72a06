"""The key-value cache of one text, addressed by positions that the host knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from specgen.core.draft_tree import depths_of, path_to
from specgen.core.settings import MAX_CHECKED_TOKENS
from specgen.models.attention_kernel import AttentionKernel, NewRows, SeenPositions, kernel_for, seen_by_rows
from specgen.models.capped_attention import attend_capped
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.rotary import rotate
from specgen.models.stored_slots import Rotations, StoredSlots
from specgen.models.tree_mask import tree_mask

FIRST_CAPACITY = 512
"""Positions of a new cache; it doubles when it is full."""


class SliceSlots(StoredSlots):
    """The key-value cache of one text.

    Args:
        spec: As in `StoredSlots`.
        like: As in `StoredSlots`.
        attends_by_row: Attends with each token of a short pass alone. Then attention does not depend on the number of
            tokens in a pass, bit for bit. Where our own kernel does not run, it costs a call for each token.
    """

    def __init__(self, spec: DecoderSpec, like: Tensor, attends_by_row: bool = False) -> None:
        super().__init__(spec, like)
        self._attends_by_row = attends_by_row
        is_float32_on_cpu = like.dtype == torch.float32 and like.device.type == "cpu"
        self._kernel = kernel_for(spec) if attends_by_row and is_float32_on_cpu else None

    def release(self) -> None:
        """As in `StoredSlots`."""
        super().release()
        self._capacity = 0
        self.first = self._last = 0
        self._first_row = 0
        self._parents: list[int] = []
        """Parents of the rows of a tree, stored from `_first_row` on; empty: the pass has consecutive tokens."""
        self._masks: dict[int | None, Tensor | None] = {}
        self._seen: dict[int | None, SeenPositions] = {}

    def grow(self, capacity: int, num_kept: int) -> None:
        """As in `StoredSlots`."""
        super().grow(capacity, num_kept)
        # Last: after a failure, no tensor is smaller than the capacity, so nothing is lost.
        self._capacity = capacity

    def begin(self, first: int, num_new: int) -> Rotations:
        """Prepares a pass over `num_new` tokens from position `first` on; what was stored after `first` is lost."""
        self._first_row, self.first, self._last = first, first, first + num_new
        self._masks, self._seen, self._parents = {}, {}, []
        if self._last > self._capacity:
            self.grow(max(FIRST_CAPACITY, 2 * self._capacity, self._last), first)
        return {
            rotary: (cos[self.first : self._last], sin[self.first : self._last])
            for rotary, (cos, sin) in self._tables.items()
        }

    def begin_rows(self, length: int, parents: Sequence[int]) -> Rotations:
        """Prepares a pass over rows of a tree after `length` positions; earlier rows stay.

        Row i is stored at position `length + i`, and rotated by its depth.

        Args:
            length: Positions before the tree.
            parents: As in `TreeModel.tree_logits`.
        """
        all_parents = [*self._parents, *parents]
        first = length + len(self._parents)
        if first + len(parents) > self._capacity:
            self.grow(max(FIRST_CAPACITY, 2 * self._capacity, first + len(parents)), first)
        self._first_row, self.first, self._last = length, first, first + len(parents)
        self._masks, self._seen, self._parents = {}, {}, all_parents
        positions = torch.tensor(depths_of(all_parents)[-len(parents) :], device=self._like.device) + length
        return {rotary: (cos[positions], sin[positions]) for rotary, (cos, sin) in self._tables.items()}

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Moves a path of the tree to the positions after the text before it."""
        first = self._first_row
        self._parents = []
        num_in_place = next((index for index, row in enumerate(rows) if row != index), len(rows))
        if num_in_place == len(rows):
            return
        positions = [first + row for row in rows[num_in_place:]]
        if self._kernel is not None:
            self._kernel.move([*self._keys, *self._values], positions, first + num_in_place)
            return
        moved = torch.tensor(positions, device=self._like.device)
        for tensor in (*self._keys, *self._values):
            tensor.narrow(1, first + num_in_place, len(moved)).copy_(tensor.index_select(1, moved))

    def drop_rows(self) -> None:
        """Forgets the tree."""
        self._parents = []

    def rotate_and_attend(
        self, layer: int, heads: Tensor, values: Tensor, table: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """As in `KvSlots`; in one call where our own kernel runs."""
        kernel = self.kernel
        if kernel is None:
            return super().rotate_and_attend(layer, heads, values, table)
        if table is not None and table[0].shape[-1] != kernel.rotary_size:
            heads, table = rotate(heads, table), None
        new = NewRows(heads, values, table, self.first)
        return kernel.attend(new, self.stored(layer), self.seen(layer), self._spec.attention_scale)

    @property
    def kernel(self) -> AttentionKernel | None:
        """Our own kernel, if the tokens of this pass attend by it."""
        return self._kernel if self._last - self.first <= MAX_CHECKED_TOKENS else None

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values of a layer, `[kv_heads, capacity, head_size]`."""
        return self._keys[layer], self._values[layer]

    def seen(self, layer: int) -> SeenPositions:
        """Returns which positions the tokens of this pass see in a layer."""
        window = self._spec.layers[layer].window
        if window not in self._seen:
            self._seen[window] = seen_by_rows(self._first_row, self._last - self.first, window, self._parents)
        return self._seen[window]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `KvSlots`."""
        first, last = self.first, self._last
        self._keys[layer].narrow(1, first, last - first).copy_(keys.transpose(0, 1))
        self._values[layer].narrow(1, first, last - first).copy_(values.transpose(0, 1))
        if self._parents:
            return self._attend_rows(layer, queries, keys, values)
        if self._attends_by_row and 1 < last - first <= MAX_CHECKED_TOKENS:
            rows = enumerate(torch.split(queries, 1))
            return torch.cat([self._attend(layer, row, first + index, is_alone=True) for index, row in rows])
        return self._attend(layer, queries, first)

    def _attend_rows(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends with rows of a tree: with a mask, or row by row as in passes over one token, bit for bit.

        A row is alone after its ancestors when these are stored by depth. The rows are stored at their own places again
        in the end.
        """
        first = self.first
        if not self._attends_by_row or first != self._first_row:
            return self._attend(layer, queries, first)
        stored, attended = (self._keys[layer], self._values[layer]), []
        row_at = list(range(self._last - first))
        for row in range(len(row_at)):
            path = path_to(self._parents, row)
            for depth, ancestor in enumerate(path):
                if row_at[depth] != ancestor:
                    row_at[depth] = ancestor
                    for tensor, new in zip(stored, (keys, values), strict=True):
                        tensor[:, first + depth] = new[ancestor]
            attended.append(self._attend(layer, queries[row : row + 1], first + len(path) - 1, is_alone=True))
        for tensor, new in zip(stored, (keys, values), strict=True):
            tensor[:, first : self._last] = new.transpose(0, 1)
        return torch.cat(attended)

    def _attend(self, layer: int, queries: Tensor, first: int, *, is_alone: bool = False) -> Tensor:
        """Attends with queries from position `first` on; the keys and values are stored.

        Args:
            layer: Index of the layer.
            queries: `[n, heads, head_size]`.
            first: Position of the first one.
            is_alone: It is one row that sees all positions up to its own.
        """
        num_new = queries.shape[0]
        last = first + num_new
        window = self._spec.layers[layer].window
        start = 0 if window is None else max(0, (first if is_alone else self._first_row) + 1 - window)
        seen_keys = self._keys[layer].narrow(1, start, last - start)
        seen_values = self._values[layer].narrow(1, start, last - start)
        mask = None if is_alone else self._mask(window, start)
        if mask is None and num_new == 1 and self._spec.attention_soft_cap is None:
            return self._attend_alone(queries, seen_keys, seen_values)
        rows = queries.transpose(0, 1)
        if self._spec.attention_soft_cap is not None:
            attended = attend_capped(self._spec, rows, (seen_keys, seen_values), mask)[None]
        else:
            attended = functional.scaled_dot_product_attention(
                rows[None],
                seen_keys[None],
                seen_values[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=self._spec.attention_scale,
                enable_gqa=self._group > 1,
            )
        return attended.transpose(1, 2).reshape(num_new, -1)

    def _attend_alone(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends with one row that sees all keys given.

        In float32, heads that share keys are rows of one product, which takes half the time. In bfloat16 that gains
        nothing, and would round otherwise than transformers.
        """
        num_rows = self._group if queries.dtype == torch.float32 else 1
        rows, scale = queries.view(1, -1, num_rows, queries.shape[-1]), self._spec.attention_scale
        seen, is_grouped = (keys[None], values[None]), num_rows < self._group
        return functional.scaled_dot_product_attention(rows, *seen, scale=scale, enable_gqa=is_grouped).reshape(1, -1)

    def _mask(self, window: int | None, start: int) -> Tensor | None:
        """Returns which positions from `start` on each new token sees, `[n, positions]`; None: plain causal, or all."""
        if window not in self._masks:
            num_new = self._last - self.first
            mask = None
            if self._parents:
                mask = tree_mask(self._parents, num_new, (start, self._first_row), window).to(self._like.device)
            elif num_new > 1 and (self.first or (window is not None and self._last > window)):
                columns = torch.arange(start, self._last, device=self._like.device)
                rows = torch.arange(self.first, self._last, device=self._like.device)[:, None]
                mask = columns <= rows
                if window is not None:
                    mask &= columns > rows - window
            self._masks[window] = mask
        return self._masks[window]
