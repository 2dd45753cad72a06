"""Plants bugs that recorded passes invite, one at a time, and checks that the tests of this folder catch each."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch import Tensor

from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.transfer import HostCopy
from specgen.loading import draft_head_parts
from specgen.models.static import inputs, slots
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.inputs import DraftedTokens, PassInputs
from specgen.models.static.model import StaticModel
from specgen.models.static.recorder import Replays
from specgen.models.static.segments import SegmentedPass, _Part
from specgen.models.static.slots import TensorSlots
from specgen.models.static.whole_pass import WholePass
from tests.decoders import decoder_model
from tests.fakes import oracle, sampler
from tests.models.static import test_on_device as device_tests
from tests.models.static import test_segments as segment_tests
from tests.models.static import test_static_model as static_tests
from tests.models.static import test_whole_pass as whole_tests
from tests.models.static.builders import segmented_model, static_model
from tests.models.static.test_static_model import (
    PROMPT,
    greedy_text,
    model_of,
    poison,
    text,
)
from tests.models.test_decoder import WINDOW

Plant = pytest.MonkeyPatch


def check_text(kind: str = "llama") -> None:
    """Greedy text with drafts that are right, wrong and padded (three tokens make a pass of four rows)."""
    draft = ModelDrafter(static_model(model_of("llama")), 96, sampler())
    for num_draft_tokens in (4, 6):
        target = static_model(model_of(kind))
        assert tuple(text(target, draft, num_draft_tokens)) == greedy_text(kind)
        assert tuple(text(target, oracle(greedy_text(kind), len(PROMPT)), num_draft_tokens)) == greedy_text(kind)


def check_whole_text() -> None:
    whole_tests.test_greedy_text_equals_transformers("qwen2-window")


def check_logits() -> None:
    """Logits of one pass size at several positions, over poison."""
    target, plain = static_model(model_of("llama")), decoder_model(model_of("llama"), 96)
    ids = list(range(1, 60))
    for length in (5, 9, 30, 50, 12):
        for model in (target, plain):
            model.rewind(min(length, model.length))
            model.feed(ids[:length])
        poison(target)
        found = target.logits(ids[: length + 3], 3).clone()
        assert torch.allclose(found, plain.logits(ids[: length + 3], 3), atol=1e-3)


def check_growth() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "FIRST_BUCKET", 16)
        target, plain = static_model(model_of("llama")), decoder_model(model_of("llama"), 96)
        ids = list(range(1, 60))
        for length in range(1, len(ids)):
            expected = plain.logits(ids[:length], 1)
            assert torch.allclose(target.logits(ids[:length], 1), expected, atol=1e-3)


def check_self_draft() -> None:
    """A target that drafts for itself has every token accepted."""
    target, draft = static_model(model_of("llama")), static_model(model_of("llama"))
    accepted = []
    original = StaticModel._read_verdict

    def watching(self: StaticModel, num_new: int) -> list[int]:
        numbers = original(self, num_new)
        accepted.append((numbers[0], len(numbers) - 3))
        return numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticModel, "_read_verdict", watching)
        assert tuple(text(target, ModelDrafter(draft, 96, sampler()), 4)) == greedy_text("llama")
    assert all(kept == drafted for kept, drafted in accepted)


def check_head() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Admission would refuse the draft head, and plain passes would hide the bug.
        patch.setattr(draft_head_parts, "head_admission_failure", lambda *_: None)
        static_tests.test_a_draft_head_on_recorded_passes_drafts_what_it_drafts_without("head features")


def check_drafted() -> None:
    for head in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_head_parts, "head_admission_failure", lambda *_: None)
            static_tests.test_what_an_earlier_draft_left_is_not_read(head, patch)


def check_reads() -> None:
    with pytest.MonkeyPatch.context() as patch:
        device_tests.test_a_round_reads_the_device_once("greedy", device_tests.static, "model", patch)


def check_segments() -> None:
    """Greedy text in three segments, through growth, with drafts that are right, wrong and in segments themselves."""
    kind, expected = "gemma3", segment_tests.greedy_text("gemma3")
    drafts = [
        ModelDrafter(segmented_model(model_of("llama", 1), (1, 1)), 96, sampler()),
        oracle(expected, len(PROMPT)),
        NoDrafter(),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "FIRST_BUCKET", 16)
        for draft in drafts:
            target = segmented_model(segment_tests.deep_model(kind), (1, 1, 3))
            assert tuple(text(target, draft)) == expected


def check_segmented_draft() -> None:
    """A draft in segments that equals its target has every token accepted."""
    target, draft = static_model(model_of("llama")), segmented_model(model_of("llama"), (1, 1))
    rounds = segment_tests.rounds(target, ModelDrafter(draft, 96, sampler()))
    assert all(round_.num_accepted == len(round_.draft_ids) for round_ in rounds)


def check_segmented_prompt() -> None:
    segment_tests.check_logits_after_a_long_prompt((1, 1, 3))


def position_recorded_as_a_number(plant: Plant) -> None:
    def baked(self: PassInputs, rows: int) -> Tensor:
        first = self.last_position
        return torch.arange(first, first + rows)

    original = PassInputs.write

    def noting(self: PassInputs, new: Any, position: int, count: int) -> None:
        self.last_position = position  # type: ignore[attr-defined]
        original(self, new, position, count)

    plant.setattr(PassInputs, "write", noting)
    plant.setattr(PassInputs, "positions", baked)


def mask_off_by_one(plant: Plant) -> None:
    original = TensorSlots._bias

    def shifted(self: TensorSlots, window: int | None) -> Tensor:
        positions, self._positions = self._positions, self._positions + 1
        try:
            return original(self, window)
        finally:
            self._positions = positions

    plant.setattr(TensorSlots, "_bias", shifted)


def padding_and_draft_visible(plant: Plant) -> None:
    original = TensorSlots._bias

    def all_rows(self: TensorSlots, window: int | None) -> Tensor:
        positions, self._positions = self._positions, self._positions.amax().expand_as(self._positions)
        try:
            return original(self, window)
        finally:
            self._positions = positions

    plant.setattr(TensorSlots, "_bias", all_rows)


def window_forgotten(plant: Plant) -> None:
    original = TensorSlots._bias
    plant.setattr(TensorSlots, "_bias", lambda self, window: original(self, None))


def window_of_transformers_forgotten(plant: Plant) -> None:
    original = WholePass._mask
    plant.setattr(WholePass, "_mask", lambda self, positions, window: original(self, positions, None))


def window_of_transformers_one_too_short(plant: Plant) -> None:
    original = WholePass._mask
    plant.setattr(WholePass, "_mask", lambda self, positions, window: original(self, positions, window and window - 1))


def windows_of_transformers_in_all_layers(plant: Plant) -> None:
    original = WholePass._mask
    plant.setattr(WholePass, "_mask", lambda self, positions, window: original(self, positions, window or WINDOW))


def output_not_copied(plant: Plant) -> None:
    def replaced(self: StaticModel, rows: int, bucket: int) -> None:
        logits = self.static_pass.run(self._inputs.ids[:rows], self._inputs.positions(rows), bucket, rows)
        self._logits = logits[:, : self.vocab_size].float().clone()

    plant.setattr(StaticModel, "_write_logits", replaced)


def recordings_survive_growth(plant: Plant) -> None:
    plant.setattr(Replays, "clear", lambda self: None)


def one_recording_for_all_buckets(plant: Plant) -> None:
    original = Replays.run

    def careless(self: Replays, key: Hashable, work: Callable[[], None]) -> None:
        original(self, key[:2] if isinstance(key, tuple) else key, work)

    plant.setattr(Replays, "run", careless)


def bucket_one_short(plant: Plant) -> None:
    original = StaticModel.bucket
    plant.setattr(StaticModel, "bucket", lambda self, num_positions: original(self, num_positions) // 2)


def heads_in_the_order_of_rows(plant: Plant) -> None:
    def mixed(rows: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        attended = functional(rows, keys, values, **options)
        return attended.roll(1, dims=2) if rows.shape[2] > 2 else attended

    functional = torch.nn.functional.scaled_dot_product_attention

    class Functional:
        scaled_dot_product_attention = staticmethod(mixed)

    plant.setattr(slots, "functional", Functional)


def feedback_before_the_token_is_written(plant: Plant) -> None:
    original = DraftedTokens.append

    def early(self: DraftedTokens, logits: Tensor) -> Tensor:
        token = self.ids.index_select(0, self._index)
        original(self, logits)
        return token

    plant.setattr(DraftedTokens, "append", early)


def feedback_at_the_same_position(plant: Plant) -> None:
    def standing(self: PassInputs, token: Tensor) -> None:
        self.ids[:1] = token

    plant.setattr(PassInputs, "feed_back", standing)


def rewound_on_the_host_only(plant: Plant) -> None:
    def sticky(self: PassInputs, new: Any, position: int, count: int) -> None:
        self.ids[: len(new)].copy_(torch.as_tensor(new))
        self.position.fill_(max(position, int(self.position)))
        self.count.fill_(count)

    plant.setattr(PassInputs, "write", sticky)


def padding_accepted(plant: Plant) -> None:
    """The verdict compares padding rows, too, which hold the ids of an earlier pass."""
    original = StaticModel._write_verdict

    def careless(self: StaticModel, rows: int, bucket: int) -> None:
        count = self._inputs.count.clone()
        self._inputs.count.fill_(rows)
        self._inputs.ids[1:rows] = torch.where(
            self._inputs.offsets[1:rows] >= count, self._logits[: rows - 1].argmax(-1), self._inputs.ids[1:rows]
        )
        original(self, rows, bucket)
        self._inputs.count.copy_(count)

    plant.setattr(StaticModel, "_write_verdict", careless)


def own_token_from_the_next_row(plant: Plant) -> None:
    original = StaticModel._write_verdict

    def late(self: StaticModel, rows: int, bucket: int) -> None:
        original(self, rows, bucket)
        top = self._logits[:rows].argmax(-1)
        self._verdict[1:2] = top.index_select(0, (self._verdict[:1] + 1).clamp(max=rows - 1))

    plant.setattr(StaticModel, "_write_verdict", late)


def first_token_from_the_padding(plant: Plant) -> None:
    def last_row(self: StaticModel, rows: int, bucket: int) -> None:
        self._drafted.restart()
        self._write_logits(rows, bucket)
        self._inputs.feed_back(self._drafted.append(self._logits[:1]))

    plant.setattr(StaticModel, "_write_first_token", last_row)


def head_without_its_own_output(plant: Plant) -> None:
    def stale(self: StaticDraftHead, bucket: int) -> None:
        self._write_output(1, bucket)
        self._choose()

    plant.setattr(StaticDraftHead, "_step", stale)


def draft_not_restarted(plant: Plant) -> None:
    original = DraftedTokens.restart

    def longer(self: DraftedTokens) -> None:
        index = self._index.clone()
        original(self)
        self._index.copy_(torch.where(index < 32, index, 0))

    plant.setattr(DraftedTokens, "restart", longer)


def drafted_token_not_stored(plant: Plant) -> None:
    original = DraftedTokens.append

    def unstored(self: DraftedTokens, logits: Tensor) -> Tensor:
        before = self.ids.clone()
        token = original(self, logits)
        self.ids.copy_(torch.where(self._index < 3, self.ids, before))
        return token

    plant.setattr(DraftedTokens, "append", unstored)


def confidence_of_the_token_before(plant: Plant) -> None:
    original = DraftedTokens.append

    def late(self: DraftedTokens, logits: Tensor) -> Tensor:
        before = self.confidences.clone()
        token = original(self, logits)
        self.confidences.copy_(before)
        self.confidences.index_fill_(0, self._index, 0.5)
        return token

    plant.setattr(DraftedTokens, "append", late)


def values_not_stored(plant: Plant) -> None:
    original = TensorSlots.attend

    def keys_only(self: TensorSlots, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return original(self, layer, queries, keys, torch.zeros_like(values))

    plant.setattr(TensorSlots, "attend", keys_only)


def growth_keeps_one_token_too_few(plant: Plant) -> None:
    original = TensorSlots.grow
    plant.setattr(TensorSlots, "grow", lambda self, capacity, kept: original(self, capacity, max(0, kept - 1)))


def result_read_before_its_copy_has_ended(plant: Plant) -> None:
    plant.setattr(HostCopy, "read", lambda self: self._copy.tolist())


def segments_in_the_wrong_order(plant: Plant) -> None:
    original = SegmentedPass.__init__

    def swapped(self: SegmentedPass, *args: Any) -> None:
        original(self, *args)
        if len(self._parts) == 2:
            first, second = self._parts
            first._layers, second._layers = second._layers, first._layers
            first.slots, second.slots = second.slots, first.slots

    plant.setattr(SegmentedPass, "__init__", swapped)


def copy_to_the_last_segment_forgotten(plant: Plant) -> None:
    original = SegmentedPass.run_earlier

    def uncopied(self: SegmentedPass, *args: Any) -> None:
        before = self._received.clone()
        original(self, *args)
        self._received.copy_(before)

    plant.setattr(SegmentedPass, "run_earlier", uncopied)


def copy_between_segments_forgotten(plant: Plant) -> None:
    original = _Part.play

    def deaf(self: _Part, rows: int, bucket: int) -> None:
        self.received.zero_()
        original(self, rows, bucket)

    plant.setattr(_Part, "play", deaf)


def inputs_copied_once(plant: Plant) -> None:
    original, copied = PassInputs.copy_from, set()

    def once(self: PassInputs, other: PassInputs) -> None:
        if id(self) not in copied:
            copied.add(id(self))
            original(self, other)

    plant.setattr(PassInputs, "copy_from", once)


def ids_copied_without_the_position(plant: Plant) -> None:
    def partial(self: PassInputs, other: PassInputs) -> None:
        self.ids.copy_(other.ids)

    plant.setattr(PassInputs, "copy_from", partial)


def earlier_segments_do_not_grow(plant: Plant) -> None:
    original, grow = SegmentedPass.grow, TensorSlots.grow

    def careless(self: SegmentedPass, capacity: int, num_kept: int) -> None:
        earlier = [part.slots for part in self._parts]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                TensorSlots, "grow", lambda slots, size, kept: grow(slots, size, 0 if slots in earlier else kept)
            )
            original(self, capacity, num_kept)

    plant.setattr(SegmentedPass, "grow", careless)


def recordings_of_segments_survive_growth(plant: Plant) -> None:
    original = SegmentedPass.grow

    def careless(self: SegmentedPass, capacity: int, num_kept: int) -> None:
        kept = [(dict(part.replays._recorded), set(part.replays._seen)) for part in self._parts]
        original(self, capacity, num_kept)
        for part, (of_part, seen) in zip(self._parts, kept, strict=True):
            part.replays._recorded, part.replays._seen = of_part, seen

    plant.setattr(SegmentedPass, "grow", careless)


def earlier_segments_skipped_in_the_prompt(plant: Plant) -> None:
    original = SegmentedPass._inputs_of_last

    def skipping(self: SegmentedPass, ids: Tensor, positions: Tensor, bucket: int) -> Tensor:
        return original(self, ids, positions, bucket) if len(ids) <= 17 else self.decoder.embed(ids)

    plant.setattr(SegmentedPass, "_inputs_of_last", skipping)


BUGS: list[tuple[Callable[[Plant], None], Callable[[], None]]] = [
    (position_recorded_as_a_number, check_logits),
    (mask_off_by_one, check_logits),
    (padding_and_draft_visible, check_logits),
    (window_forgotten, lambda: check_text("mistral-window")),
    (window_of_transformers_forgotten, check_whole_text),
    (window_of_transformers_one_too_short, check_whole_text),
    (windows_of_transformers_in_all_layers, check_whole_text),
    (output_not_copied, check_logits),
    (recordings_survive_growth, check_growth),
    (one_recording_for_all_buckets, check_growth),
    (bucket_one_short, check_growth),
    (heads_in_the_order_of_rows, check_logits),
    (feedback_before_the_token_is_written, check_self_draft),
    (feedback_at_the_same_position, check_self_draft),
    (rewound_on_the_host_only, check_text),
    (padding_accepted, check_text),
    (own_token_from_the_next_row, check_text),
    (first_token_from_the_padding, check_self_draft),
    (head_without_its_own_output, check_head),
    (draft_not_restarted, check_drafted),
    (drafted_token_not_stored, check_drafted),
    (confidence_of_the_token_before, check_drafted),
    (values_not_stored, check_logits),
    (result_read_before_its_copy_has_ended, check_reads),
    (growth_keeps_one_token_too_few, check_growth),
    (segments_in_the_wrong_order, check_segments),
    (copy_to_the_last_segment_forgotten, check_segments),
    (copy_between_segments_forgotten, check_segments),
    (inputs_copied_once, check_segments),
    (ids_copied_without_the_position, check_segments),
    (inputs_copied_once, check_segmented_draft),
    (earlier_segments_do_not_grow, check_segments),
    (recordings_of_segments_survive_growth, check_segments),
    (earlier_segments_skipped_in_the_prompt, check_segmented_prompt),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "check",
    [
        *(
            check_text,
            check_whole_text,
            check_logits,
            check_growth,
            check_self_draft,
            check_head,
            check_drafted,
            check_reads,
        ),
        *(check_segments, check_segmented_draft, check_segmented_prompt),
    ],
)
def test_the_checks_pass_without_a_bug(check: Callable[[], None]) -> None:
    check()


@pytest.mark.thorough
@pytest.mark.parametrize(("plant_bug", "check"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_caught(
    plant_bug: Callable[[Plant], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy_text("llama"), greedy_text("mistral-window")
    plant_bug(monkeypatch)

    with pytest.raises((AssertionError, IndexError)):
        check()
