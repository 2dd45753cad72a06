"""Runs a draft head by recorded passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.engine.transfer import ids_on, moved
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.draft_head_layers import DecoderLayers
from specgen.models.static.inputs import MAX_ROWS, capacity_for, padded_rows
from specgen.models.static.passes import StaticLayers
from specgen.models.static.prefill import prefill_bucket
from specgen.models.static.recorded import RecordedPasses
from specgen.models.static.recorder import Recorder
from specgen.models.static.trees import TreeInputs


class StaticDraftHead(RecordedPasses, DraftHeadModel):
    """A draft head whose passes are recorded, and whose greedy tokens are fed back on the device.

    Args:
        parts: The draft head; its layers are `DecoderLayers`.
        recorder: Records its passes.
        is_fused: As in `StaticLayers`.
    """

    def __init__(self, parts: DraftHeadParts, recorder: Recorder, *, is_fused: bool = False) -> None:
        super().__init__(parts)
        assert isinstance(parts.layers, DecoderLayers), "the caller checks it"
        self._init_recording(self.device, recorder, parts.columns)
        with torch.inference_mode():
            self._static_layers = StaticLayers(parts.layers.segment, is_fused=is_fused)
            width = parts.layers.spec.hidden_size
            self._given = torch.zeros(MAX_ROWS, width, dtype=parts.dtype, device=self.device)
            self._output = torch.zeros(1, width, dtype=parts.dtype, device=self.device)
            self._tree = TreeInputs([layer.window for layer in parts.layers.spec.layers], self.device)
            self._above = torch.zeros(MAX_ROWS, dtype=torch.int64, device=self.device)
            # The output of the last position, then those of a tree's rows and of padding after them.
            self._outputs = torch.zeros(1 + 2 * MAX_ROWS, width, dtype=parts.dtype, device=self.device)
        self._parents: list[int] = []
        """Parents of the rows of the tree; out of date if there are no outputs of rows."""
        self._row_logits: Tensor | None = None

    @torch.inference_mode()
    def draft_token(self, ids: Sequence[int], index: int) -> None:
        """As in `GreedyDrafter`."""
        if index == 0:
            self.feed(ids)
            self._drafted.restart()
            self._inputs.position.fill_(self.length - self.start)
            self._inputs.count.zero_()
            self.replays.run("choose", self._choose)
            return
        # The last drafted token is fed now, with this draft's own output in place of the target's features.
        self.reserve(self.length - self.start + 1)
        bucket = capacity_for(self.length - self.start + 1)
        self.replays.run(("step", bucket), lambda: self._step(bucket))
        self.num_forwards += 1
        self.length += 1
        if self._join is None:
            self._num_true = self.length

    @torch.inference_mode()
    def drafted_logits(self) -> Tensor:
        """Returns the logits that the token drafted last was chosen from, `[1, vocab_size]`; see `columns`."""
        return self._logits(self._output)

    @torch.inference_mode()
    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """As in `TreeModel`; a tree has at most `MAX_ROWS` rows."""
        logits = self._counted(lambda: self._run_rows(tokens, parents))
        self._row_outputs = self._outputs
        return logits

    @torch.inference_mode()
    def forget(self) -> None:
        """As in `RecordingModel`."""
        self._static_layers.slots.clear(0)
        self._clear_rows()
        self._restart()

    @torch.inference_mode()
    def reset(self) -> None:
        """Empties the cache and frees its memory."""
        self._forget_recordings()
        self._static_layers.slots.release()
        self._clear_rows()
        super().reset()

    def _clear_rows(self) -> None:
        """Overwrites what padding rows read: rows of earlier passes, which may contain NaN."""
        for tensor in (self._given, self._output, self._outputs):
            tensor.zero_()

    def _zero_output(self) -> Tensor:
        return self._output.zero_()

    def _rewind_to_start(self) -> None:
        self._restart()  # keeps the memory, so that the recordings stay valid

    @torch.inference_mode()
    def reserve(self, num_tokens: int) -> None:
        """As in `RecordingModel`."""
        num_kept = self.length - self.start
        self._make_room(num_tokens, lambda capacity: self._static_layers.slots.grow(capacity, num_kept), self.reset)

    def _run(self, new: Tensor, features: Tensor | None) -> Tensor:
        num_new, position = new.shape[0], self.length - self.start
        last = position + num_new
        self.reserve(last)
        if num_new > MAX_ROWS:
            positions = torch.arange(position, last, device=self.device)
            bucket = prefill_bucket(last, self.capacity)
            hidden = self._static_layers.run(self._layer_inputs(new, features), positions, bucket)
            self._output[:] = self._norm(hidden[-1:])
            return self._output
        self._inputs.write(new, position, num_new)
        if features is not None:
            self._given[:num_new] = features
        rows, bucket = padded_rows(num_new), min(capacity_for(last), self.capacity)
        self.replays.run(("feed", rows, bucket), lambda: self._write_output(rows, bucket))
        return self._output

    def _run_rows(self, new: Tensor, parents: Sequence[int]) -> Tensor:
        """Computes the pass of `tree_logits`."""
        if self._row_outputs is None:
            self._parents = []
        if self._row_logits is None:
            self._row_logits = torch.zeros(MAX_ROWS, self.vocab_size, device=self.device)
        num_new, start = new.shape[0], self.length - self.start
        first = start + len(self._parents)
        last = first + num_new
        assert last <= start + MAX_ROWS, "the tree has too many rows"
        self._make_room(last, lambda capacity: self._static_layers.slots.grow(capacity, first), self.reset)
        self._parents += parents
        self._inputs.write(moved(new, self.device), first, num_new)
        self._tree.write(start, self._parents, num_new)
        self._above[:num_new].copy_(ids_on(self.device, [parent + 1 for parent in parents]), non_blocking=True)
        rows, bucket = padded_rows(num_new), min(capacity_for(last), self.capacity)
        self.replays.run(("tree", rows, bucket), lambda: self._write_row_logits(rows, bucket))
        return self._row_logits[:num_new]

    # What is recorded: functions of the static tensors only.

    def _write_row_logits(self, rows: int, bucket: int) -> None:
        assert self._row_logits is not None, "they belong to a tree"
        ids, positions = self._inputs.ids[:rows], self._inputs.positions(rows)
        self._outputs[:1] = self._output
        given = None if self._join is None else self._outputs.index_select(0, self._above[:rows])
        hidden = self._static_layers.run(self._layer_inputs(ids, given), positions, bucket, self._tree)
        outputs = self._norm(hidden)
        self._outputs.index_copy_(0, positions - self._tree.start + 1, outputs)
        self._row_logits[:rows] = self._head(outputs)[:, : self.vocab_size]

    def _write_output(self, rows: int, bucket: int) -> None:
        ids, positions = self._inputs.ids[:rows], self._inputs.positions(rows)
        given = None if self._join is None else self._given[:rows]
        hidden = self._static_layers.run(self._layer_inputs(ids, given), positions, bucket)
        self._output[:] = self._norm(hidden.index_select(0, self._inputs.count - 1))

    def _choose(self) -> None:
        logits: Tensor = self._head(self._output)[:, : self.vocab_size]
        self._inputs.feed_back(self._drafted.append(logits.float()))

    def _step(self, bucket: int) -> None:
        self._given[:1] = self._output
        self._write_output(1, bucket)
        self._choose()
