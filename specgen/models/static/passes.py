"""Runs passes of specgen's decoder over tokens at positions that only the device knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specgen.models.decoder import Decoder
from specgen.models.static.features import StaticFeatures
from specgen.models.static.inputs import PassInputs
from specgen.models.static.slots import TensorSlots
from specgen.models.static.trees import TreeInputs


class DecoderPass:
    """Passes of specgen's decoder on one device; `SegmentedPass` runs it on several.

    Args:
        decoder: In eval mode, without gradients.
    """

    can_branch = True
    reads_whole_cache = False

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.module: nn.Module = decoder
        self.device = decoder.output_device
        self.num_embeddings = decoder.embedding.shape[0]
        self.features: StaticFeatures | None = None
        """Inputs of the head by position, if a draft head reads them."""
        self._last = decoder.segments[-1]
        self._slots = TensorSlots(self._last.spec, self._last.like)

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def record_features(self, first: int, capacity: int) -> StaticFeatures:
        weight = self._decoder.norm.weight
        buffer = torch.zeros(capacity, weight.shape[0], dtype=self._decoder.dtype, device=self.device)
        self.features = StaticFeatures(first, buffer)
        return self.features

    def grow(self, capacity: int, num_kept: int) -> None:
        self._slots.grow(capacity, num_kept)
        if self.features is not None:
            self.features.grow(capacity, num_kept)

    def release(self) -> None:
        self._slots.release()
        if self.features is not None:
            self.features.release()

    def clear(self, first: int) -> None:
        self._slots.clear(first)

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        pass  # all is on one device

    @property
    def has_failed(self) -> bool:
        return False

    def take_failure(self) -> str | None:
        return None

    def keep_path(self, tree: TreeInputs) -> None:
        self._slots.keep_path(tree)
        if self.features is not None:
            tree.keep_path([self.features.buffer])

    def run(self, ids: Tensor, positions: Tensor, bucket: int, num_last: int, tree: TreeInputs | None = None) -> Tensor:
        decoder = self.decoder
        hidden = self._inputs_of_last(ids, positions, bucket)
        hidden = self._last.run(hidden, self._slots.begin(positions, bucket, tree), self._slots)
        if self.features is None:
            return decoder.logits(decoder.norm(hidden[-num_last:]))
        features = decoder.norm(hidden)
        self.features.write(positions, features)
        return decoder.logits(features[-num_last:])

    def _inputs_of_last(self, ids: Tensor, positions: Tensor, bucket: int) -> Tensor:  # noqa: ARG002
        """Returns the inputs of the last segment, `[n, hidden]` on its device."""
        return self.decoder.embed(ids)
