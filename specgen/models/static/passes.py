"""Runs passes of specgen's decoder over tokens at positions that only the device knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specgen.models.decoder import Decoder, Segment
from specgen.models.static.features import StaticFeatures
from specgen.models.static.inputs import MAX_ROWS, PassInputs
from specgen.models.static.slots import TensorSlots
from specgen.models.static.trees import TreeInputs

if TYPE_CHECKING:
    from specgen.models.fused.layers import FusedLayers


class StaticLayers:
    """Layers on one device, with their cache.

    Args:
        segment: The layers.
        is_fused: Passes over few rows run on the kernels of `specgen.models.fused`.
    """

    def __init__(self, segment: Segment, *, is_fused: bool = False) -> None:
        self.slots = TensorSlots(segment.spec, segment.like)
        self._segment = segment
        self._fused: FusedLayers | None = None
        if is_fused:
            from specgen.models.fused.layers import FusedLayers

            self._fused = FusedLayers(segment.spec, segment.layers)

    @property
    def has_exact_rows(self) -> bool:
        """Whether a row of consecutive tokens has the same result, bit for bit, for any number of rows."""
        return self._fused is not None and self._fused.has_exact_rows

    def run(self, hidden: Tensor, positions: Tensor, bucket: int, tree: TreeInputs | None = None) -> Tensor:
        """Turns inputs of the first layer `[n, hidden]` into outputs of the last; arguments as in `StaticPass.run`."""
        if self._fused is not None and hidden.shape[0] <= MAX_ROWS:
            return self._fused.run(hidden, self.slots.visible(positions, bucket, tree), self.slots.stored())
        return self._segment.run(hidden, self.slots.begin(positions, bucket, tree), self.slots)


class DecoderPass:
    """Passes of specgen's decoder on one device; `SegmentedPass` runs it on several.

    Args:
        decoder: In eval mode, without gradients.
        is_fused: As in `StaticLayers`; the head, too.
    """

    can_branch = True
    reads_whole_cache = False

    def __init__(self, decoder: Decoder, *, is_fused: bool = False) -> None:
        self._decoder = decoder
        self.module: nn.Module = decoder
        self.device = decoder.output_device
        self.num_embeddings = decoder.embedding.shape[0]
        self.features: StaticFeatures | None = None
        """Inputs of the head by position, if a draft head reads them."""
        self._last = StaticLayers(decoder.segments[-1], is_fused=is_fused)
        self._head: Callable[[Tensor], Tensor] = decoder.head
        self.has_exact_rows = self._last.has_exact_rows
        if is_fused:
            from specgen.models.fused.products import product_of

            head = product_of(decoder.head)
            self._head = head.whole
            self.has_exact_rows = self.has_exact_rows and head.has_exact_rows

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def record_features(self, first: int, capacity: int) -> StaticFeatures:
        weight = self._decoder.norm.weight
        buffer = torch.zeros(capacity, weight.shape[0], dtype=self._decoder.dtype, device=self.device)
        self.features = StaticFeatures(first, buffer)
        return self.features

    def grow(self, capacity: int, num_kept: int) -> None:
        self._last.slots.grow(capacity, num_kept)
        if self.features is not None:
            self.features.grow(capacity, num_kept)

    def release(self) -> None:
        self._last.slots.release()
        if self.features is not None:
            self.features.release()

    def clear(self, first: int) -> None:
        self._last.slots.clear(first)

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        pass  # all is on one device

    @property
    def has_failed(self) -> bool:
        return False

    def take_failure(self) -> str | None:
        return None

    def keep_path(self, tree: TreeInputs) -> None:
        self._last.slots.keep_path(tree)
        if self.features is not None:
            tree.keep_path([self.features.buffer])

    def run(self, ids: Tensor, positions: Tensor, bucket: int, num_last: int, tree: TreeInputs | None = None) -> Tensor:
        decoder = self.decoder
        hidden = self._inputs_of_last(ids, positions, bucket)
        hidden = self._last.run(hidden, positions, bucket, tree)
        if self.features is None:
            return self._logits(decoder.norm(hidden[-num_last:]))
        features = decoder.norm(hidden)
        self.features.write(positions, features)
        return self._logits(features[-num_last:])

    def _logits(self, features: Tensor) -> Tensor:
        head = self._head if features.shape[0] <= MAX_ROWS else self.decoder.head
        return self.decoder.capped(head(features))

    def _inputs_of_last(self, ids: Tensor, positions: Tensor, bucket: int) -> Tensor:  # noqa: ARG002
        """Returns the inputs of the last segment, `[n, hidden]` on its device."""
        return self.decoder.embed(ids)
