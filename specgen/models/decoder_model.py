"""A decoder of specgen's own with its cache, as the decoding loop needs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specgen.models.cached_model import CachedModel
from specgen.models.decoder import Decoder
from specgen.models.kv_slots import SliceSlots
from specgen.models.quantized import fits_nf4, nf4_linear
from specgen.models.target_features import TargetFeatures
from specgen.models.timing import faster_of


class DecoderModel(CachedModel):
    """A decoder and the cache of one text.

    Args:
        decoder: In eval mode, without gradients.
        vocab_size: As in `CachedModel`.
        attends_by_row: As in `SliceSlots`.
    """

    def __init__(self, decoder: Decoder, vocab_size: int, attends_by_row: bool = False) -> None:
        super().__init__(vocab_size, decoder.embedding.shape[0], decoder.output_device)
        self.decoder = decoder
        self.attends_by_row = attends_by_row
        self.target_features: TargetFeatures | None = None
        """Inputs of the head at the cached positions, if a draft head reads them: see `record_target_features`."""
        self._slots = tuple(SliceSlots(segment.spec, segment.like, attends_by_row) for segment in decoder.segments)
        self._devices = tuple(segment.device for segment in decoder.segments)

    @property
    def module(self) -> nn.Module:
        """The weights."""
        return self.decoder

    def record_target_features(self) -> TargetFeatures:
        """Records the head's inputs from the next pass on; a second call returns the same record."""
        if self.target_features is None:
            self.target_features = TargetFeatures(self.length)
        return self.target_features

    def use_nf4_head(self) -> None:
        """Computes the logits with a 4-bit copy of the head if that is faster. For drafts only."""
        head = self.decoder.head
        if isinstance(head, nn.Linear) and fits_nf4(head.weight):
            row = torch.ones(1, head.in_features, dtype=head.weight.dtype, device=head.weight.device)
            self.decoder.head = faster_of(head, nf4_linear(head.weight, None), row)

    def _release(self) -> None:
        for slots in self._slots:
            slots.release()
        if self.target_features is not None:
            self.target_features.rewind(0)

    def _cut(self, length: int) -> int:
        """Removes only features: the next pass overwrites the keys and values."""
        if self.target_features is not None:
            self.target_features.rewind(length)
        return length

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        decoder = self.decoder
        hidden = decoder.embed(new.to(decoder.device))
        for segment, slots, device in zip(decoder.segments, self._slots, self._devices, strict=True):
            rotations = slots.begin(self.length, new.shape[0])
            hidden = segment.run(hidden.to(device), rotations, slots)
        if self.target_features is None:
            return decoder.logits(decoder.norm(hidden[-num_last:]))
        features = decoder.norm(hidden)
        self.target_features.append(self.length, features)
        return decoder.logits(features[-num_last:])
