"""A decoder of specgen's own with its cache, as the decoding loop needs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specgen.core.settings import MAX_CHECKED_TOKENS
from specgen.models.cached_model import CachedModel
from specgen.models.decoder import Decoder
from specgen.models.float_linear import reading_prompt
from specgen.models.fused_layers import last_norm
from specgen.models.kv_slots import SliceSlots
from specgen.models.native_layers import NativeLayers
from specgen.models.packing import fast_nf4_linear, has_fast_nf4
from specgen.models.shortlist_head import ShortlistHead
from specgen.models.stored_slots import Rotations
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
        self._row_features: Tensor | None = None
        """`[rows, hidden]`: inputs of the head at the rows of the last tree's pass."""
        self._shortlist = decoder.head if isinstance(decoder.head, ShortlistHead) else None
        self._slots = tuple(SliceSlots(segment.spec, segment.like, attends_by_row) for segment in decoder.segments)
        self._layers = tuple(NativeLayers(segment) for segment in decoder.segments)
        self._norm = last_norm(decoder.norm, decoder.layers)
        self._devices = tuple(segment.device for segment in decoder.segments)

    @property
    def module(self) -> nn.Module:
        """The weights."""
        return self.decoder

    def use_nf4_head(self) -> None:
        """Computes the logits with a 4-bit copy of the head if that is faster. For drafts only."""
        head = self.decoder.head
        largest = head.parts[0] if isinstance(head, ShortlistHead) else head
        faster = _faster_in_nf4(largest)
        if faster is largest:
            return
        if isinstance(head, ShortlistHead):
            head.replace_parts(faster, _in_nf4)
        else:
            self.decoder.head = faster

    @property
    def can_branch(self) -> bool:
        """Whether it computes trees: not where a longer text is read with other frequencies."""
        return self.switch_length is None

    @torch.inference_mode()
    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """As in `TreeModel`."""
        return self._counted(0, lambda: self._run_rows(tokens, parents)[:, : self.vocab_size].float())

    @torch.inference_mode()
    def keep_rows(self, rows: Sequence[int]) -> None:
        """As in `TreeModel`."""
        for slots in self._slots:
            slots.keep_rows(rows)
        if self.target_features is not None and self._row_features is not None:
            self.target_features.append(self.length, self._row_features[list(rows)])
        if self._shortlist is not None:
            self._shortlist.keep_rows(self.length, rows)
        self.length += len(rows)

    def _feed(self, ids: Sequence[int]) -> None:
        with reading_prompt():
            super()._feed(ids)

    def _release(self) -> None:
        for slots in self._slots:
            slots.release()
        if self._shortlist is not None:
            self._shortlist.cut(0)

    def _cut(self, length: int) -> int:
        """Removes only trees: the next pass overwrites the keys and values."""
        for slots in self._slots:
            slots.drop_rows()
        if self._shortlist is not None:
            self._shortlist.cut(length)
        return length

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        decoder = self.decoder
        if self._shortlist is not None:
            self._shortlist.cut(self.length)
            self._shortlist.read(new, is_prompt=new.shape[0] > MAX_CHECKED_TOKENS)
        hidden = self._layers_output(new, [slots.begin(self.length, new.shape[0]) for slots in self._slots])
        if self.target_features is None:
            return decoder.logits(self._norm(hidden[-num_last:]))
        features = self._norm(hidden)
        self.target_features.append(self.length, features)
        return decoder.logits(features[-num_last:])

    def _run_rows(self, new: Tensor, parents: Sequence[int]) -> Tensor:
        """Computes the pass of `tree_logits`."""
        if self._shortlist is not None:
            self._shortlist.read(new, is_prompt=False)
        hidden = self._layers_output(new, [slots.begin_rows(self.length, parents) for slots in self._slots])
        self._row_features = self._norm(hidden)
        return self.decoder.logits(self._row_features)

    def _layers_output(self, new: Tensor, rotations: Sequence[Rotations]) -> Tensor:
        """Returns the outputs of the last layer for `new` `[n]`, with the rotations of each segment."""
        hidden = self.decoder.embed(new.to(self.decoder.device))
        for index, layers in enumerate(self._layers):
            hidden = layers.run(hidden.to(self._devices[index]), rotations[index], self._slots[index])
        return hidden


def _faster_in_nf4(head: nn.Module) -> nn.Module:
    """Returns a 4-bit copy of a linear layer if it is faster, else the layer."""
    copy = _in_nf4(head)
    if copy is head:
        return head
    weight = head.get_parameter("weight")
    return faster_of(head, copy, torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device))


def _in_nf4(layer: nn.Module) -> nn.Module:
    """Returns a 4-bit copy of a linear layer, or the layer if the kernel can't have it."""
    fits = isinstance(layer, nn.Linear) and has_fast_nf4(layer.weight)
    return fast_nf4_linear(layer.get_parameter("weight"), None) if fits else layer
