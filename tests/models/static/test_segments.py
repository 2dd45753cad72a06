"""A decoder in segments: the same text as in one piece, one recording per segment, and nothing on the wrong device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from specgen.core.events import Notice, Round
from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.loading import draft_head, draft_head_parts
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.decoder_weights import dense_linear
from specgen.models import build_decoder, cached_model
from specgen.models import draft_head as draft_head_model
from specgen.models.build_decoder import build_layer
from specgen.models.cuda import recorded
from specgen.models.decoder import Decoder
from specgen.models.decoder_model import DecoderModel
from specgen.models.forward_pass import Norm
from specgen.models.static import inputs
from specgen.models.static.inputs import ROWS
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.segments import SegmentedPass
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM, tensor_shapes
from tests.decoders import decoder_of
from tests.draft_heads import SHAPES, open_draft, tiny_draft
from tests.fakes import assert_close, ids_of, oracle, run_events, sampler
from tests.models.static.builders import host_reads, segmented_model, static_model
from tests.models.static.recorder import EagerMode, TraceRecorder
from tests.models.static.test_static_model import NUM_TOKENS, PROMPT, model_of, text
from tests.models.static.test_static_model import greedy_text as text_of_two_layers
from tests.models.test_decoder import DIFFERENT, build
from tests.profiles import num_examples, thorough_except

NUM_LAYERS = 5
DIVISIONS = ((2, 3), (1, 1, 3))


@cache
def shared_draft() -> StaticModel:
    """A draft in two segments. Its passes are recorded in its first text, and replayed in those of other tests."""
    return segmented_model(model_of("llama", 1), (1, 1))


@cache
def deep_model(kind: str) -> Any:
    return build(kind, num_hidden_layers=NUM_LAYERS)


@cache
def greedy_text(kind: str) -> tuple[int, ...]:
    output = deep_model(kind).generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None, pad_token_id=0
    )
    return tuple(output[0, len(PROMPT) :].tolist())


def split_decoder(kind: str, num_layers: tuple[int, ...]) -> Decoder:
    decoder = decoder_of(deep_model(kind))
    decoder.split(num_layers)
    return decoder


MIXED_LAYERS = ("qwen2-window", "gemma2", "gemma3", "smollm3")
"""Families whose layers differ, so that the division matters: a segment may have layers of one kind or of both.

Segments run the layers that a whole pass does: `test_static_model` tests those of all families."""
FAST_CASES = [("gemma3", (1, 1, 3)), ("smollm3", (1, 1, 3)), ("gemma2", (2, 3))]
CASES = [
    pytest.param(kind, num_layers, marks=() if (kind, num_layers) in FAST_CASES else pytest.mark.thorough)
    for kind in ("qwen2-window", *DIFFERENT)
    for num_layers in DIVISIONS
    if num_layers == (1, 1, 3) or kind in (*MIXED_LAYERS, "llama")
]


@pytest.mark.parametrize(("kind", "num_layers"), CASES)
@pytest.mark.fast("smollm3*")
def test_greedy_text_in_segments_equals_transformers(kind: str, num_layers: tuple[int, ...]) -> None:
    target, draft = segmented_model(deep_model(kind), num_layers), shared_draft()

    assert tuple(text(target, ModelDrafter(draft, 96, sampler()))) == greedy_text(kind)
    assert tuple(text(target, oracle(greedy_text(kind), len(PROMPT)))) == greedy_text(kind)
    assert all(len(part.replays.recorded_keys) >= 2 for part in parts_of(target))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "smollm3"])
def test_logits_in_segments_equal_those_in_one_piece(kind: str) -> None:
    whole = DecoderModel(decoder_of(deep_model(kind)), 96)
    ids = torch.arange(70).tolist()
    for num_layers in (*DIVISIONS, (NUM_LAYERS,)):
        ours = DecoderModel(split_decoder(kind, num_layers), 96)
        for model in (whole, ours):
            model.rewind(0)
            model.feed(ids[:30])
            model.rewind(21)
        assert torch.equal(ours.logits(ids, 5), whole.logits(ids, 5))


@pytest.mark.parametrize("num_layers", [(), (5, 0), (2, 2), (4, 2)])
def test_every_layer_belongs_to_one_segment(num_layers: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="segment"):
        split_decoder("llama", num_layers)


@pytest.mark.parametrize("kind", thorough_except(["gemma2"], ["llama", "gemma2", "phi3-window"]))
@pytest.mark.thorough
def test_text_past_a_bucket_equals_that_without_recording(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 16)
    target = segmented_model(deep_model(kind), (1, 1, 3))

    assert tuple(text(target, ModelDrafter(static_model(model_of("llama", 1)), 96, sampler()))) == greedy_text(kind)
    assert target.capacity >= 64
    for part in parts_of(target):
        assert {bucket for _, bucket in part.replays.recorded_keys} >= {32, 64}


def filled(num_layers: tuple[int, ...]) -> StaticModel:
    """A model whose passes of every size are recorded."""
    model = segmented_model(deep_model("llama"), num_layers)
    for rows in ROWS:
        for _ in range(2):
            model.rewind(0)
            model.feed(PROMPT)
            model.logits([*PROMPT, *range(rows)], rows)
    return model


@pytest.mark.parametrize("num_layers", [(2, 3), pytest.param((1, 1, 3), marks=pytest.mark.thorough)])
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=num_examples(10))
@pytest.mark.thorough
def test_poison_after_the_text_changes_no_logits(
    num_layers: tuple[int, ...], steps: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, plain = shared_filled(num_layers), DecoderModel(decoder_of(deep_model("llama")), 96)
    model.rewind(0)
    ids = [1]
    for num_fed, num_removed in steps:
        ids = [*ids, *torch.randint(0, 96, (num_fed,), generator=generator).tolist()]
        poison(model)
        assert_close(model.logits(ids, 1), plain.logits(ids, 1))
        ids = ids[: max(1, len(ids) - num_removed)]
        for each in (model, plain):
            each.rewind(len(ids) - 1)


shared_filled = cache(filled)


@torch.inference_mode()
def poison(model: StaticModel) -> None:
    """Fills what no pass may read: all outputs, and keys and values after the text."""
    static_pass = model.static_pass
    assert isinstance(static_pass, SegmentedPass)
    for tensor in (model._logits, static_pass._received):
        tensor.fill_(float("nan"))
    for part in static_pass._parts:
        part.received.fill_(float("nan"))
        part.output.fill_(float("nan"))
        part.inputs._all.fill_(-1)
    for slots in (static_pass._last.slots, *(part.slots for part in static_pass._parts)):
        for cached in (*slots._keys, *slots._values):
            cached[:, model.length :] = 1e4  # not NaN: a weight of 0 times NaN is NaN


@pytest.mark.parametrize("num_layers", DIVISIONS)
def test_logits_after_a_long_prompt_equal_those_in_one_piece(num_layers: tuple[int, ...]) -> None:
    check_logits_after_a_long_prompt(num_layers)


def check_logits_after_a_long_prompt(num_layers: tuple[int, ...]) -> None:
    """The prompt is a pass that is not recorded."""
    model, plain = segmented_model(deep_model("llama"), num_layers), DecoderModel(decoder_of(deep_model("llama")), 96)
    ids = [(7 * index) % 96 for index in range(80)]
    for each in (model, plain):
        each.feed(ids[:60])
    assert torch.allclose(model.logits(ids[:63], 3), plain.logits(ids[:63], 3), atol=1e-3)


def rounds(target: StaticModel, drafter: ModelDrafter) -> list[Round]:
    events = decode(target, drafter, PROMPT, sampler(), DecodeOptions(DecodeSettings(NUM_TOKENS, 4)))
    return [event for event in events if isinstance(event, Round)]


def parts_of(model: StaticModel) -> Any:
    assert isinstance(model.static_pass, SegmentedPass)
    return model.static_pass._parts


def traces(model: StaticModel) -> list[list[Any]]:
    """What each segment recorded."""
    return [part.replays._recorder.traces for part in parts_of(model)]


def test_recordings_do_not_depend_on_the_position() -> None:
    model = segmented_model(deep_model("llama"), (1, 1, 3))
    model.logits(list(range(30)), 1)
    for length in (25, 9):
        model.replays.clear()
        for part in parts_of(model):
            part.replays.clear()
        for _ in range(2):
            model.rewind(length)
            model.logits(list(range(length + 3)), 3)

    for of_part in traces(model):
        first, second = (trace.signature() for trace in of_part[-2:])
        assert first == second
        assert len(first) > 20


def test_a_warm_up_of_a_segment_is_one_of_the_model() -> None:
    """So the model's own count tells whether the time of a pass may be learned."""
    target = segmented_model(deep_model("llama"), (1, 1, 3))
    drafter = ModelDrafter(segmented_model(model_of("llama", 1), (1, 1)), 96, sampler())
    before = 0
    for event in decode(target, drafter, PROMPT, sampler(), DecodeOptions(DecodeSettings(NUM_TOKENS, 4))):
        if isinstance(event, Round):
            of_parts = sum(part.replays.num_warmups for part in (*parts_of(target), *parts_of(drafter.model)))
            assert event.is_warmup or of_parts == before
            before = of_parts


def test_a_recording_that_fails_on_one_device_is_reported_once_and_costs_no_text() -> None:
    class Failing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("no graphs on this device\nsecond line")

    static_pass = SegmentedPass(split_decoder("llama", (1, 1, 3)), [TraceRecorder(), Failing()])
    target = StaticModel(static_pass, 96, TraceRecorder())
    assert not target.has_failed
    events = run_events(target, NoDrafter(), PROMPT, max_new_tokens=NUM_TOKENS)

    assert tuple(ids_of(events)) == greedy_text("llama")
    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["recording_failed"]
    assert "no graphs on this device" in notices[0].message
    assert target.has_failed  # so its costs are not those of recorded passes


def test_a_greedy_round_in_segments_reads_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = segmented_model(deep_model("llama"), (2, 3))
    drafter = ModelDrafter(static_model(model_of("llama")), 96, sampler())
    options = DecodeOptions(DecodeSettings(NUM_TOKENS, 4), draft_length=FixedLength())
    counts = []
    with host_reads(monkeypatch) as reads:
        for event in decode(target, drafter, PROMPT, sampler(), options):
            if isinstance(event, Round):
                counts.append(len(reads))
            reads.clear()

    assert set(counts) == {1}


@pytest.mark.parametrize("name", thorough_except(["head layers", "head subset"], SHAPES))
@pytest.mark.fast("head layers")
def test_a_draft_head_on_a_target_in_segments_drafts_what_it_drafts_on_a_whole_one(name: str) -> None:
    model = model_of("llama")
    folder = tiny_draft(name, model, "static-llama")

    def drafts(target: StaticModel) -> list[Any]:
        head = open_draft(folder, target)
        drafter = ModelDrafter(head, 96, sampler(), columns=head.columns)
        events = list(decode(target, drafter, PROMPT, sampler(), DecodeOptions(DecodeSettings(NUM_TOKENS, 4))))
        assert tuple(ids_of(events)) == text_of_two_layers("llama")
        return [event.draft_ids for event in events if isinstance(event, Round)]

    assert drafts(segmented_model(model, (1, 1))) == drafts(static_model(model))


@pytest.mark.thorough
def test_a_model_in_segments_is_recorded_by_one_recorder_per_device() -> None:
    recorders = [TraceRecorder() for _ in range(3)]
    found = recorded(DecoderModel(split_decoder("gemma3", (1, 1, 3)), 96), *recorders)

    assert found.reason is None
    assert isinstance(found.model, StaticModel)
    assert isinstance(found.model.static_pass, SegmentedPass)
    assert all(recorder.traces for recorder in recorders)
    single = recorded(DecoderModel(decoder_of(deep_model("gemma3")), 96), TraceRecorder()).model
    assert isinstance(single, StaticModel)
    assert type(single.static_pass) is DecoderPass


# devices


class DeviceCopies(EagerMode):
    """Counts the tensors that go from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[tuple[str, str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device != result.device:
                self.moved.append((str(source.device), str(result.device), tuple(result.shape)))
        return result


@contextmanager
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceCopies]:
    """Tensors without values, of which torch knows the device: an operation on two devices is an error."""
    monkeypatch.setattr(
        cached_model, "ids_on", lambda device, ids: torch.zeros(len(ids), dtype=torch.int64, device=device)
    )
    monkeypatch.setattr(inputs, "upload", lambda to, _: to.zero_())
    with FakeTensorMode(allow_non_fake_inputs=True), DeviceCopies() as copies:
        yield copies


def fake_decoder(kind: str, num_layers: tuple[int, ...]) -> Decoder:
    """A decoder whose segments are on `cpu:0`, `cpu:1` and so on."""
    with unset_fake_temporarily():  # other tests get the same model
        spec = decoder_spec(deep_model(kind).config.to_dict())
    shapes = tensor_shapes(spec)
    last = f"cpu:{len(num_layers) - 1}"
    places = [f"cpu:{index}" for index, number in enumerate(num_layers) for _ in range(number)]

    def zeros(*names: str, device: str) -> torch.Tensor:
        return torch.zeros(sum(shapes[name][0] for name in names), *shapes[names[0]][1:], device=device)

    layers = [
        build_layer(spec, index, partial(zeros, device=place), dense_linear, torch.float32)
        for index, place in enumerate(places)
    ]
    head = dense_linear(zeros(EMBEDDING if spec.is_tied else HEAD, device=last), None)
    norm = Norm(zeros(NORM, device=last), spec)
    decoder = Decoder(spec, zeros(EMBEDDING, device="cpu:0"), layers, norm, head)
    decoder.split(num_layers)
    return decoder


class NoRecorder:
    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


@pytest.mark.parametrize(
    "kind",
    [
        "gemma3",
        *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("gemma2", "olmo2", "granite")),
    ],
)
@pytest.mark.thorough
def test_no_operation_mixes_devices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(60))
    with fake_devices(monkeypatch) as copies:
        decoder = fake_decoder(kind, (1, 1, 3))
        plain = DecoderModel(decoder, 96)
        static = StaticModel(SegmentedPass(decoder, [NoRecorder(), NoRecorder()]), 96, NoRecorder())
        for model in (plain, static):
            model.feed(ids[:40])
            model.rewind(33)
            assert model.logits(ids[:36], 2).device == torch.device("cpu:2")
        copies.moved.clear()
        with pytest.raises(DataDependentOutputException):  # the read of the verdict, after everything else
            static.verify_greedy(ids[:37], torch.zeros(4, dtype=torch.int64, device="cpu:2"))()

    hidden = decoder.spec.hidden_size
    # Ids, position and count go to each device; besides them, only the hidden states of five rows move.
    assert copies.moved == [
        ("cpu:2", "cpu:0", (19,)),
        ("cpu:2", "cpu:1", (19,)),
        ("cpu:0", "cpu:1", (5, hidden)),
        ("cpu:1", "cpu:2", (5, hidden)),
    ]


@pytest.mark.thorough
def test_a_draft_in_segments_feeds_its_token_to_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_devices(monkeypatch) as copies:
        static_pass = SegmentedPass(fake_decoder("llama", (2, 3)), [NoRecorder()])
        draft = StaticModel(static_pass, 96, NoRecorder())
        draft.feed(PROMPT[:-1])
        for index in range(3):
            draft.draft_token(PROMPT, index)
        assert draft.drafted_ids(3).device == torch.device("cpu:1")
    assert ("cpu:1", "cpu:0", (19,)) in copies.moved


@pytest.mark.parametrize("name", ["head layers", "head features"])
@pytest.mark.thorough
def test_a_draft_head_is_on_the_device_of_its_targets_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_draft(name, deep_model("llama"), "segments-llama")
    shapes = {key: tensor.shape for key, tensor in draft_head.load_tensors(folder, 96).items()}
    with fake_devices(monkeypatch) as copies:
        monkeypatch.setattr(
            draft_head, "load_tensors", lambda *_: {key: torch.zeros(shape) for key, shape in shapes.items()}
        )
        monkeypatch.setattr(draft_head_model, "ids_on", cached_model.ids_on)
        # On a CPU, weights are joined in memory that is mapped, which has no device.
        monkeypatch.setattr(build_decoder, "joined", torch.cat)
        monkeypatch.setattr(draft_head_parts, "weight_bytes", lambda _: 0)
        # Tensors on these devices have no values.
        monkeypatch.setattr(draft_head_parts, "head_admission_failure", lambda *_: None)
        target = StaticModel(SegmentedPass(fake_decoder("llama", (2, 3)), [NoRecorder()]), 96, NoRecorder())
        head = open_draft(folder, target)
        target.feed(PROMPT)
        copies.moved.clear()
        for index in range(3):
            head.draft_token(PROMPT, index)

        assert head.device == head.drafted_ids(3).device == torch.device("cpu:1")
    assert copies.moved == []


def test_a_checker_of_devices_sees_a_copy_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_devices(monkeypatch):
        decoder = fake_decoder("llama", (2, 3))
        decoder.segments = (decoder.segments[0],)
        with pytest.raises(RuntimeError, match="device"):
            DecoderModel(decoder, 96).logits([1, 2, 3], 1)
