"""Passes of a decoder whose layers are on several devices: one recording per device, and a small copy between them.

This gives room, not speed: at one text, only one device computes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.models.decoder import Decoder, Segment
from specgen.models.static.inputs import MAX_ROWS, PassInputs
from specgen.models.static.passes import DecoderPass, StaticLayers
from specgen.models.static.recorder import Recorder, Replays


class SegmentedPass(DecoderPass):
    """Passes of specgen's decoder on several devices.

    The model that owns this pass records the last segment, the head and what it does with the logits. The earlier
    segments are recorded here, each by the recorder of its device. torch orders a copy between two devices after the
    work of both, so the host waits for nothing.

    Args:
        decoder: In eval mode, without gradients, in two segments or more.
        recorders: Of the devices of all segments but the last one.
        is_fused: As in `StaticLayers`.
    """

    can_branch = False

    def __init__(self, decoder: Decoder, recorders: Sequence[Recorder], *, is_fused: bool = False) -> None:
        super().__init__(decoder, is_fused=is_fused)
        earlier = zip(decoder.segments[:-1], recorders, strict=True)
        self._parts = [_Part(decoder, segment, recorder, is_fused=is_fused) for segment, recorder in earlier]
        self.has_exact_rows = self.has_exact_rows and all(part.has_exact_rows for part in self._parts)
        with torch.inference_mode():
            self._received = torch.zeros(
                MAX_ROWS, decoder.spec.hidden_size, dtype=decoder.dtype, device=decoder.output_device
            )

    def grow(self, capacity: int, num_kept: int) -> None:
        """As in `StaticPass`."""
        for part in self._parts:
            part.slots.grow(capacity, num_kept)
            part.replays.clear()
        super().grow(capacity, num_kept)

    def release(self) -> None:
        """As in `StaticPass`."""
        for part in self._parts:
            part.slots.release()
            part.replays.clear()
            part.inputs.ids.zero_()
        super().release()

    def clear(self, first: int) -> None:
        """As in `StaticPass`."""
        for part in self._parts:
            part.slots.clear(first)
        super().clear(first)

    @property
    def has_failed(self) -> bool:
        """As in `StaticPass`."""
        return any(part.replays.has_failed for part in self._parts)

    def take_failure(self) -> str | None:
        """As in `StaticPass`."""
        failures = [part.replays.take_failure() for part in self._parts]
        return next((failure for failure in failures if failure is not None), None)

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        """As in `StaticPass`."""
        sent: Tensor | None = None
        for part in self._parts:
            part.inputs.copy_from(inputs)
            if sent is not None:
                part.received[:rows].copy_(sent[:rows], non_blocking=True)
            part.play(rows, bucket)
            sent = part.output
        assert sent is not None, "there are two segments or more"
        self._received[:rows].copy_(sent[:rows], non_blocking=True)

    def _inputs_of_last(self, ids: Tensor, positions: Tensor, bucket: int) -> Tensor:
        """Returns what `run_earlier` copied; for a pass that is not recorded, runs the earlier segments first."""
        num_new = ids.shape[0]
        if num_new <= MAX_ROWS:
            return self._received[:num_new]
        hidden = self._decoder.embed(ids.to(self._decoder.device, non_blocking=True))
        for part in self._parts:
            device = part.segment.device
            hidden = part.run(hidden.to(device), positions.to(device, non_blocking=True), bucket)
        return hidden.to(self.device)


class _Part:
    """A segment before the last one: its cache, its static tensors and its recordings.

    Args:
        decoder: The whole decoder.
        segment: One of its segments.
        recorder: Of the segment's device.
        is_fused: As in `StaticLayers`.
    """

    def __init__(self, decoder: Decoder, segment: Segment, recorder: Recorder, *, is_fused: bool) -> None:
        self.segment = segment
        self._layers = StaticLayers(segment, is_fused=is_fused)
        self.slots, self.has_exact_rows = self._layers.slots, self._layers.has_exact_rows
        self.replays = Replays(recorder)
        self._decoder = decoder
        self._is_first = segment is decoder.segments[0]
        shape = (MAX_ROWS, decoder.spec.hidden_size)
        with torch.inference_mode():
            self.inputs = PassInputs(segment.device)
            self.received, self.output = segment.like.new_zeros(shape), segment.like.new_zeros(shape)

    def play(self, rows: int, bucket: int) -> None:
        """Runs or replays the segment on the inputs that were copied here."""
        self.replays.run((rows, bucket), lambda: self._write_output(rows, bucket))

    def run(self, hidden: Tensor, positions: Tensor, bucket: int) -> Tensor:
        """Runs the segment, `[n, hidden]` to the same."""
        return self._layers.run(hidden, positions, bucket)

    # What is recorded: a function of the static tensors only.

    def _write_output(self, rows: int, bucket: int) -> None:
        hidden = self._decoder.embed(self.inputs.ids[:rows]) if self._is_first else self.received[:rows]
        self.output[:rows] = self.run(hidden, self.inputs.positions(rows), bucket)
