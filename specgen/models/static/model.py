"""Runs a model by recorded passes: few sizes, fixed addresses, positions on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from specgen.core.errors import DraftError, NumericalError
from specgen.core.settings import MAX_CHECKED_TOKENS
from specgen.engine.contract import DRAFT_NOT_FINITE
from specgen.engine.inference_mode import in_inference_mode
from specgen.engine.transfer import HostCopy, moved
from specgen.models.cached_model import CachedModel
from specgen.models.decoder import Decoder
from specgen.models.static.contract import StaticPass
from specgen.models.static.inputs import MAX_ROWS, DraftFlag, Ids, capacity_for, padded_rows
from specgen.models.static.prefill import prefill_bucket, prefill_chunk
from specgen.models.static.recorded import NUM_VERDICTS, RecordedPasses
from specgen.models.static.recorder import Recorder
from specgen.models.static.trees import TreeInputs
from specgen.models.target_features import TargetFeatures


class StaticModel(RecordedPasses, CachedModel):
    """A static pass and the cache of one text.

    Padding rows feed ids of an earlier pass and write after the text. Other rows multiply what they wrote by 0.

    Args:
        static_pass: Computes the logits.
        vocab_size: As in `CachedModel`.
        recorder: Records its passes.
    """

    def __init__(self, static_pass: StaticPass, vocab_size: int, recorder: Recorder) -> None:
        super().__init__(vocab_size, static_pass.num_embeddings, static_pass.device)
        self.static_pass = static_pass
        self.recorder = recorder
        self._init_recording(self.device, recorder)
        with torch.inference_mode():
            self._verdict = torch.zeros(NUM_VERDICTS + MAX_ROWS - 1, dtype=torch.int64, device=self.device)
            self._verdict_on_host = HostCopy(self._verdict)
            self._draft_flag = DraftFlag(self.device)
            self._logits = torch.zeros(MAX_ROWS, vocab_size, device=self.device)
        self._drafted_row = 0
        self._parents: list[int] = []
        """Parents of the rows of the tree after the cached tokens."""
        self._tree: TreeInputs | None = None

    @property
    def has_failed(self) -> bool:
        """Whether recording failed, so that passes run plainly: on one device at least."""
        return self.static_pass.has_failed or super().has_failed

    def take_failure(self) -> str | None:
        """Returns once why recording failed, if it did."""
        return self.static_pass.take_failure() or super().take_failure()

    @property
    def module(self) -> nn.Module:
        """The weights."""
        return self.static_pass.module

    @property
    def decoder(self) -> Decoder | None:
        """The weights as specgen's decoder, if it computes the passes."""
        return self.static_pass.decoder

    @property
    def target_features(self) -> TargetFeatures | None:
        """Inputs of the head at the cached positions, if a draft head reads them."""
        return self.static_pass.features

    @in_inference_mode
    def record_target_features(self) -> TargetFeatures:
        """Records the head's inputs from the next pass on; a second call returns the same record."""
        if self.static_pass.features is None:
            self.static_pass.record_features(self.length, self.capacity)
            self.replays.clear()
        assert self.static_pass.features is not None, "they are recorded now"
        return self.static_pass.features

    @property
    def prefill_chunk(self) -> int:
        """Tokens of one prefill pass."""
        return prefill_chunk(None if self.decoder is None else self.decoder.spec)

    @property
    def can_branch(self) -> bool:
        """Whether the model computes trees."""
        return self.static_pass.can_branch

    @in_inference_mode
    def reserve(self, num_tokens: int) -> None:
        """Makes room for a text of `num_tokens` tokens, so that no recording is lost while it grows."""
        num_kept = self.length + len(self._parents)
        self._make_room(num_tokens, lambda capacity: self.static_pass.grow(capacity, num_kept), self.reset)

    def bucket(self, num_positions: int) -> int:
        """Returns how many positions of the cache a recorded pass reads to see the first `num_positions`."""
        return self.capacity if self.static_pass.reads_whole_cache else min(capacity_for(num_positions), self.capacity)

    def rewind(self, length: int) -> None:
        """As in the contract; keeps all memory, so that the recordings stay valid."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        self.length = length
        self._parents = []
        self._rewind_features(length)

    @in_inference_mode
    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """As in `TreeModel`; a tree has at most `MAX_ROWS` rows."""
        return self._counted(0, lambda: self._run_rows(tokens, parents))

    @in_inference_mode
    def keep_rows(self, rows: Sequence[int]) -> None:
        """As in `TreeTarget`."""
        tree = self._tree
        assert tree is not None, "there is a tree"
        tree.write_path(self.length, rows)
        self.replays.run("keep", lambda: self.static_pass.keep_path(tree))
        last = self.length + len(rows)
        self._note_pass(self.length, last)
        self.length = last

    @in_inference_mode
    def verify_greedy(
        self, ids: Sequence[int], draft_ids: Tensor, is_draft_finite: Tensor | None = None
    ) -> Callable[[], list[int]] | None:
        """Launches one recorded pass that verifies a greedy draft; its result is the round's only host read.

        Args:
            ids: The text.
            draft_ids: `[drafted]`.
            is_draft_finite: `[]` or `[1]` bool, read together with the verdict; None: it is.

        Returns:
            What reads the result, as in `GreedyVerifier`; it raises `DraftError` if the draft model's logits were not
            finite. None if the pass is too long to be recorded, or more than the last token of the text is to be fed.
        """
        num_new = draft_ids.shape[0] + 1
        if len(ids) != self.length + 1 or num_new > MAX_ROWS:
            return None
        if num_new > 1:
            self._inputs.write_draft(moved(draft_ids, self.device))
        self._draft_flag.write(is_draft_finite)
        new = ids[-1:]
        self._counted(num_new, lambda: self._play("verify", new, self.length, num_new, self._write_verdict))
        return lambda: self._read_verdict(num_new)

    def _read_verdict(self, num_new: int) -> list[int]:
        self._verdict_on_host.start()
        accepted, own, is_finite, is_sound, *rest = self._verdict_on_host.read()[: NUM_VERDICTS + num_new - 1]
        if is_finite and not is_sound:
            raise DraftError(DRAFT_NOT_FINITE) from NumericalError(DRAFT_NOT_FINITE)
        return [accepted, own, is_finite, *rest]

    @in_inference_mode
    def forget(self) -> None:
        """Empties the cache and overwrites it, because it may contain NaN; keeps the memory."""
        self.static_pass.clear(0)
        self.rewind(0)

    @in_inference_mode
    def draft_token(self, ids: Sequence[int], index: int) -> None:
        """Drafts the likeliest token after `ids` and the `index` tokens drafted so far. Reads nothing."""
        self._drafted_row = 0
        if index:
            self._counted(1, lambda: self._play("step", None, self.length, 1, self._write_next_token))
            return
        if len(ids) - MAX_ROWS > self.length:
            self.feed(ids[: len(ids) - MAX_ROWS])
        new = ids[self.length :]
        count = len(new)
        self._drafted_row = count - 1
        self._counted(count, lambda: self._play("draft", new, self.length, count, self._write_first_token))

    def row_logits(self, num_rows: int) -> Tensor:
        """Returns the logits of the first rows of the last recorded pass, `[num_rows, vocab_size]`."""
        return self._logits[:num_rows]

    def drafted_logits(self) -> Tensor:
        """Returns the logits that the token drafted last was chosen from, `[1, vocab_size]`."""
        return self._logits[self._drafted_row : self._drafted_row + 1]

    @in_inference_mode
    def _release(self) -> None:
        self._forget_recordings()
        self._parents = []
        self.static_pass.release()

    def _cut(self, length: int) -> int:
        raise AssertionError(f"rewind cuts to {length} tokens itself")

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        num_new = new.shape[0]
        if num_new <= MAX_ROWS:
            self._play("logits", new, self.length, num_new, self._write_logits)
            return self._logits[num_new - num_last : num_new]
        if num_last > 1 and num_new <= MAX_CHECKED_TOKENS:
            return torch.cat(list(self._split_logits(new)))[-num_last:]
        last = self.length + num_new
        self.reserve(last)
        positions = torch.arange(self.length, last, device=self.device)
        logits = self.static_pass.run(new, positions, prefill_bucket(last, self.capacity), num_last)
        self._note_pass(self.length, last)
        return logits

    def _run_rows(self, new: Tensor, parents: Sequence[int]) -> Tensor:
        """Computes the pass of `tree_logits`."""
        if self._tree is None:
            windows = [layer.window for layer in self.decoder.spec.layers] if self.decoder is not None else []
            self._tree = TreeInputs(windows, self.device)
        num_new, first = new.shape[0], self.length + len(self._parents)
        assert first + num_new <= self.length + MAX_ROWS, "the tree has too many rows"
        self.reserve(first + num_new)
        self._parents += parents
        self._inputs.write(moved(new, self.device), first, num_new)
        self._tree.write(self.length, self._parents, num_new)
        rows, bucket = padded_rows(num_new), self.bucket(first + num_new)
        self.replays.run(("tree", rows, bucket), lambda: self._write_logits(rows, bucket, self._tree))
        return self._logits[:num_new]

    def _split_logits(self, new: Tensor) -> Iterator[Tensor]:
        """Yields the logits of a long draft: by a few recorded passes instead of one that is not."""
        self.reserve(self.length + new.shape[0])
        for row in range(0, new.shape[0], MAX_ROWS):
            part = new[row : row + MAX_ROWS]
            self._play("logits", part, self.length + row, part.shape[0], self._write_logits)
            yield self._logits[: part.shape[0]].clone()

    def _play(self, name: str, new: Ids | None, first: int, num_new: int, work: Callable[[int, int], None]) -> None:
        """Runs or replays `work(rows, bucket)`, which feeds `num_new` tokens from position `first` on.

        The first of them are `new`; None: the inputs are what the pass before left.
        """
        last = first + num_new
        if not self._has_room(last):
            self.reserve(last)
        if new is not None:
            self._inputs.write(new, first, num_new)
        rows, bucket = padded_rows(num_new), self.bucket(last)
        self.static_pass.run_earlier(self._inputs, rows, bucket)
        self.replays.run((name, rows, bucket), lambda: work(rows, bucket))
        self._note_pass(first, last)

    def _note_pass(self, first: int, last: int) -> None:
        """Notes that positions `first` to `last - 1` hold consecutive tokens."""
        self._parents = []
        features = self.static_pass.features
        if features is not None:
            features.record(first, last)

    # What is recorded: functions of the static tensors only.

    def _write_logits(self, rows: int, bucket: int, tree: TreeInputs | None = None) -> None:
        ids, positions = self._inputs.ids[:rows], self._inputs.positions(rows)
        self._logits[:rows] = self.static_pass.run(ids, positions, bucket, rows, tree)[:, : self.vocab_size]

    def _write_verdict(self, rows: int, bucket: int) -> None:
        self._write_logits(rows, bucket)
        top = self._logits[:rows].max(dim=-1)
        num_drafted, offsets, draft_ids = self._inputs.count - 1, self._inputs.offsets[:rows], self._inputs.ids[1:rows]
        is_match = (top.indices[:-1] == draft_ids) & (offsets[:-1] < num_drafted)
        num_accepted = is_match.long().cumprod(dim=0).sum(dim=0, keepdim=True)
        is_finite = (top.values.isfinite() | (offsets > num_drafted)).all().view(1)
        own = top.indices.index_select(0, num_accepted)
        verdict = [num_accepted, own, is_finite.long(), self._draft_flag.is_finite.long(), draft_ids]
        self._verdict[: NUM_VERDICTS + rows - 1] = torch.cat(verdict)

    def _write_first_token(self, rows: int, bucket: int) -> None:
        self._drafted.restart()
        self._write_logits(rows, bucket)
        self._inputs.feed_back(self._drafted.append(self._logits.index_select(0, self._inputs.count - 1)))

    def _write_next_token(self, rows: int, bucket: int) -> None:
        self._write_logits(rows, bucket)
        self._inputs.feed_back(self._drafted.append(self._logits[:1]))
