"""Tests what needs a CUDA device: devices, kernels of bfloat16 and nf4, recorded passes, growing texts.

Run with `pytest -m gpu`; with `SPECGEN_GPU_TESTS=cpu` they are rehearsed on a CPU.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from specgen.core.draft_tree import ROOT
from specgen.core.settings import DecodeSettings, ModelSettings, SamplingSettings
from specgen.engine.clock import device_clock
from specgen.engine.contract import LanguageModel
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.loading.weights import load_weights
from specgen.models.decoder import Decoder
from specgen.models.static.model import StaticModel
from specgen.models.static.recorder import PlainRecorder
from specgen.models.static.segments import SegmentedPass
from specgen.models.transformers_model import TransformersModel
from tests.decoders import decoder_of
from tests.fakes import ids_of, tiny_model
from tests.gpu.correctness import greedy_text
from tests.gpu.machine import TEST_DEVICE
from tests.gpu.models import (
    admission,
    config_of,
    eager_model,
    fuses_decoder,
    num_recorded,
    random_decoder,
    recorder_for,
    spec_of,
    static_model,
    transformers_model,
    whole_model,
)
from tests.loading.builders import make_folder, resolved

DEVICE = torch.device(os.environ.get(TEST_DEVICE, "cuda"))
IS_CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = [1, 17, 40, 17]
PLACES = sorted({(DEVICE.type, DEVICE.type), (DEVICE.type, "cpu"), ("cpu", DEVICE.type)})
NUM_GROWING = 20
LONGEST_SECONDS = 0.3 if IS_CUDA else 10.0
"""Of twenty passes of two layers, launches included: a plan of cuDNN for each length would take half a second."""
TOLERANCE = 2**-5
"""Relative error of logits between two kernels in bfloat16."""


@pytest.fixture(autouse=True)
def _no_plans_per_length() -> None:
    if IS_CUDA:
        torch.backends.cuda.enable_cudnn_sdp(False)


def on(device: str, seed: int) -> TransformersModel:
    # tiny_model caches its models, so a copy is moved to the device.
    model = type(tiny_model(seed=seed))(tiny_model(seed=seed).config).eval()
    model.load_state_dict(tiny_model(seed=seed).state_dict())
    return TransformersModel(model.to(device), 96)


def generated(target: LanguageModel, draft: LanguageModel | None, sampling: SamplingSettings) -> list[int]:
    sampler = Sampler.seeded(sampling, target.device, 96)
    drafter = NoDrafter() if draft is None else ModelDrafter(draft, 96, sampler)
    options = DecodeOptions(DecodeSettings(32, 4), clock=device_clock(target.device))
    return ids_of(list(decode(target, drafter, PROMPT, sampler, options)))


@pytest.mark.parametrize(("target", "draft"), PLACES)
@pytest.mark.fault("F46")
def test_greedy_text_does_not_depend_on_the_drafts_device(target: str, draft: str) -> None:
    greedy = SamplingSettings()

    assert generated(on(target, 0), on(draft, 1), greedy) == generated(on(target, 0), None, greedy)


@pytest.mark.parametrize(("target", "draft"), PLACES)
def test_sampling_works_across_devices(target: str, draft: str) -> None:
    sampling = SamplingSettings(temperature=1.0, top_k=20, repetition_penalty=1.1)

    assert len(generated(on(target, 0), on(draft, 1), sampling)) == 32


@pytest.mark.parametrize(("target", "draft"), PLACES)
def test_one_seed_gives_one_text_across_devices(target: str, draft: str) -> None:
    sampling = SamplingSettings(temperature=1.0, seed=3, same_text=True)

    assert generated(on(target, 0), on(draft, 1), sampling) == generated(on(target, 0), None, sampling)


# recorded passes

KINDS = ["float32", "bfloat16", "nf4"]


def grouped_decoder(kind: str) -> Decoder:
    """A random decoder of two layers with two heads per key-value head."""
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    return random_decoder(
        spec_of("7B", is_tiny=True), DEVICE, quant="nf4" if kind == "nf4" else "none", dtype=dtype, is_steady=True
    )


def steps(model: LanguageModel) -> list[torch.Tensor]:
    """Logits of passes of all sizes over a text that grows beyond a bucket, shrinks, and grows again."""
    ids = [index % 96 for index in range(700)]
    found = []
    for _ in range(3):
        for rows, length in ((1, 20), (2, 22), (5, 27), (7, 34), (17, 51), (1, 480), (8, 530), (1, 531)):
            found.append(model.logits(ids[:length], min(rows, length - model.length)).clone())
        model.rewind(4)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_pass_equals_the_same_pass_run_plainly(kind: str) -> None:
    decoder = grouped_decoder(kind)
    recorded = static_model(decoder)

    pairs = zip(steps(recorded), steps(static_model(decoder, PlainRecorder())), strict=True)

    assert all(torch.equal(first, second) for first, second in pairs)
    assert recorded.take_failure() is None
    assert num_recorded(recorded) > 0


def tree_steps(model: StaticModel) -> list[torch.Tensor]:
    """Logits of the rows of trees, and of a pass after a path of each was kept."""
    parents = [ROOT, 0, 0, 1, ROOT, 4]
    model.rewind(0)
    found, text = [], list(range(20))
    for turn in range(4):
        model.feed(text)
        tokens = [(7 * turn + index) % 96 for index in range(6)]
        found.append(model.tree_logits(torch.tensor(tokens, device=DEVICE), parents).clone())
        model.keep_rows([0, 2])
        text += [tokens[0], tokens[2], 5]
        found.append(model.logits(text, 1).clone())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_tree_equals_the_same_passes_run_plainly(kind: str) -> None:
    decoder = grouped_decoder(kind)
    recorded = static_model(decoder)

    pairs = zip(tree_steps(recorded), tree_steps(static_model(decoder, PlainRecorder())), strict=True)

    assert all(torch.equal(first, second) for first, second in pairs)
    assert recorded.take_failure() is None
    assert {"keep", ("tree", 6, 512)} <= recorded.replays.recorded_keys


def segmented_model(kind: str, devices: list[torch.device]) -> StaticModel:
    """Returns recorded passes of `grouped_decoder`, one layer on each of two devices; nf4 weights can't be moved."""
    decoder = grouped_decoder(kind)
    if devices[0] != devices[1]:
        for module in (decoder.layers[1], decoder.norm, decoder.head):
            module.to(devices[1])
    decoder.split((1, 1))
    static_pass = SegmentedPass(decoder, [recorder_for(devices[0])], is_fused=fuses_decoder(decoder))
    return StaticModel(static_pass, decoder.spec.vocab_size, recorder_for(devices[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_two_segments_on_one_device_compute_the_logits_of_one(kind: str) -> None:
    model = segmented_model(kind, [DEVICE, DEVICE])

    pairs = zip(steps(model), steps(static_model(grouped_decoder(kind))), strict=True)

    assert all(torch.equal(first, second) for first, second in pairs)
    assert model.take_failure() is None
    assert num_recorded(model) > 0


@pytest.mark.skipif(not IS_CUDA or torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_two_segments_on_two_devices_compute_the_logits_of_one(kind: str) -> None:
    model = segmented_model(kind, [torch.device("cuda:0"), torch.device("cuda:1")])

    for found, expected in zip(steps(model), steps(static_model(grouped_decoder(kind))), strict=True):
        error = (found.to(expected.device) - expected).norm() / expected.norm()
        assert error < (1e-4 if kind == "float32" else TOLERANCE)
    assert model.take_failure() is None


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_passes_compute_the_logits_of_plain_ones(kind: str) -> None:
    decoder = grouped_decoder(kind)

    for found, expected in zip(steps(static_model(decoder)), steps(eager_model(decoder)), strict=True):
        error = (found - expected).norm() / expected.norm()
        assert error < (1e-4 if kind == "float32" else TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_passes_are_admitted(kind: str) -> None:
    assert admission(grouped_decoder(kind)) is None


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_greedy_text_is_that_of_plain_passes_and_of_transformers(kind: str) -> None:
    model = type(tiny_model(kind))(tiny_model(kind).config).eval()
    model.load_state_dict(tiny_model(kind).state_dict())
    decoder = decoder_of(model).to(DEVICE)
    prompt = [1, 17, 40, 17, 40, 9, 88, 3]
    given: Any = torch.tensor([prompt], device=DEVICE)

    output = model.to(DEVICE).generate(given, do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0)

    text = output[0, len(prompt) :].tolist()
    assert greedy_text(eager_model(decoder), prompt, 40) == text
    assert greedy_text(static_model(decoder), prompt, 40) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_changes_no_greedy_text_of_recorded_models(kind: str) -> None:
    decoder, other = grouped_decoder(kind), random_decoder(spec_of("0.5B", is_tiny=True), DEVICE)
    sampler = Sampler.seeded(SamplingSettings(), DEVICE, 512)
    options = DecodeOptions(DecodeSettings(48, 4), clock=device_clock(DEVICE))
    drafter = ModelDrafter(static_model(other), 512, sampler)

    text = ids_of(list(decode(static_model(decoder), drafter, PROMPT, sampler, options)))

    assert text == greedy_text(eager_model(decoder), PROMPT, 48)


@pytest.mark.parametrize("runner", ["eager", "recorded", "whole"])
def test_rolling_back_equals_a_fresh_prefill(runner: str) -> None:
    decoder = grouped_decoder("float32")
    whole = transformers_model(config_of("7B", is_tiny=True), decoder)
    makers = {"eager": eager_model, "recorded": static_model, "whole": lambda _: whole_model(whole)}
    model, choice = makers[runner](decoder), random.Random(0)
    ids = [1]
    for _ in range(12):
        ids += [choice.randrange(500) for _ in range(choice.randint(1, 24))]
        model.logits(ids, 1)
        ids = ids[: max(1, len(ids) - choice.randint(0, 30))]
        model.rewind(len(ids) - 1)
        fresh = makers[runner](decoder).logits(ids, 1)
        torch.testing.assert_close(model.logits(ids, 1), fresh, rtol=1e-4, atol=1e-3)
        model.rewind(len(ids) - 1)


@pytest.mark.parametrize("place", sorted({DEVICE.type, "cpu"}))
def test_a_tail_on_any_device_gives_the_logits_of_the_whole_text(place: str) -> None:
    decoder = grouped_decoder("float32")
    tail = torch.tensor([7, 3, 3], device=place)
    whole = static_model(decoder).logits([1, 5, 9, 7, 3, 3], 4)

    model = static_model(decoder)
    parts = [model.logits([1, 5, 9], last, tail=tail[:end]).clone() for last, end in ((1, 0), (1, 1), (2, 3))]

    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "sampling", [{"top_k": 20, "repetition_penalty": 1.1}, {"same_text": True, "seed": 3}], ids=str
)
def test_recorded_models_sample(sampling: dict[str, Any]) -> None:
    decoder = grouped_decoder("bfloat16")
    sampler = Sampler.seeded(SamplingSettings(temperature=1.0, **sampling), DEVICE, 512)
    options = DecodeOptions(DecodeSettings(32, 4), clock=device_clock(DEVICE))

    texts = [
        ids_of(list(decode(static_model(decoder), drafter, PROMPT, sampler, options)))
        for drafter in (NoDrafter(), ModelDrafter(static_model(decoder), 512, sampler))
    ]

    assert [len(text) for text in texts] == [32, 32]


# growing texts

MAKERS: dict[str, Callable[[str], LanguageModel]] = {
    "eager": lambda kind: eager_model(grouped_decoder(kind)),
    "recorded": lambda kind: static_model(grouped_decoder(kind)),
}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
@pytest.mark.parametrize("runner", MAKERS)
def test_passes_over_a_growing_text_take_no_extra_time(runner: str, kind: str, rows: int) -> None:
    model = MAKERS[runner](kind)
    ids = [index % 500 for index in range(400)]
    for length in (100, 100 + rows, 100 + 2 * rows):  # starts libraries, runs plainly, records
        model.logits(ids[:length], rows)
    float(model.logits(ids[: 100 + 3 * rows], rows)[0, 0])
    first = model.length

    started = perf_counter()
    for index in range(1, NUM_GROWING + 1):
        float(model.logits(ids[: first + index * rows], rows)[0, 0])

    assert perf_counter() - started < LONGEST_SECONDS


def test_loading_a_model_turns_off_plans_per_length(tmp_path: Path) -> None:
    if not IS_CUDA:
        pytest.skip("needs a CUDA device")
    torch.backends.cuda.enable_cudnn_sdp(True)
    settings = ModelSettings(str(make_folder(tmp_path / "tiny")), device="cuda")

    loaded = load_weights(resolved(tmp_path / "tiny", settings), 64)

    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert isinstance(loaded.model, StaticModel), loaded.notices


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_a_folder_loads_in_every_format(tmp_path: Path, quant: Any) -> None:
    folder = make_folder(tmp_path / "tiny", hidden_size=64, intermediate_size=128)
    settings = ModelSettings(str(folder), quant, "bfloat16", device=DEVICE.type)

    model = load_weights(resolved(folder, settings), 64).model

    assert len(greedy_text(model, [1, 2, 3], 8)) == 8
    assert model.device.type == DEVICE.type


def test_the_clock_measures_the_devices_work() -> None:
    sampler = Sampler.seeded(SamplingSettings(), DEVICE, 512)
    options = DecodeOptions(DecodeSettings(8, 0), clock=device_clock(DEVICE))

    events = list(decode(static_model(grouped_decoder("bfloat16")), NoDrafter(), PROMPT, sampler, options))

    assert all(event.verify_seconds > 0 for event in events if hasattr(event, "verify_seconds"))
