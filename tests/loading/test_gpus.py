"""Several GPUs: which layers go where, room for the draft, and what doctor and the loader do; devices are fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.errors import DeviceError, MemoryShortageError
from specgen.core.settings import BackendName, BackendSettings, ModelSettings, PairSettings
from specgen.core.units import format_size
from specgen.doctor.examine import examine_pair
from specgen.doctor.memory_plan import plan_memory
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.loading import gpus, placement, weights
from specgen.loading.cuda_memory import GRAPH_BYTES, USABLE, cuda_bytes, cuda_capacity
from specgen.loading.gpus import (
    SegmentBytes,
    beside_target,
    in_segments,
    leaving_room,
    on_gpu,
    plan_segments,
    segment_bytes,
)
from specgen.loading.placement import DeviceLayers, Placement, check_bitsandbytes, choose_placement
from specgen.loading.resolved_model import ResolvedModel, Role
from specgen.loading.tensor_files import TensorFiles
from specgen.loading.weight_sizes import needed_bytes
from specgen.loading.weights import load_weights, runs_own_decoder
from specgen.models.decoder_spec import DecoderSpec, LayerSpec, RotarySpec
from specgen.models.static.model import StaticModel
from specgen.models.static.segments import SegmentedPass
from specgen.render.doctor import format_pair
from specgen.runtime.pair import Pair, resolve_pair
from tests.fakes import ids_of, run_events
from tests.loading.builders import fails, resolved
from tests.loading.test_placement import CONFIG, pretend_gpus
from tests.models.static.recorder import TraceRecorder
from tests.models.static.test_static_model import PROMPT
from tests.toys import random_toy, save_toy

GIB = 2**30
needs = st.builds(
    SegmentBytes,
    st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 3),
)


def divisions(num_layers: int, num_devices: int) -> list[list[int]]:
    """All ways to put consecutive layers on devices, none of them empty."""
    cuts = combinations(range(1, num_layers), num_devices - 1)
    return [[end - start for start, end in zip((0, *cut), (*cut, num_layers), strict=True)] for cut in cuts]


def fits_somehow(needs: SegmentBytes, free: Sequence[int]) -> bool:
    return any(
        all(needed <= free[device] for needed, device in zip(needs.on_each(parts), devices, strict=True))
        for number in range(1, len(free) + 1)
        for devices in combinations(range(len(free)), number)
        for parts in divisions(len(needs.layers), number)
    )


@given(needs, st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_a_plan_is_found_if_there_is_one_and_fits(needs: SegmentBytes, free: list[int]) -> None:
    plan = plan_segments(needs, free)

    assert (plan is not None) == fits_somehow(needs, free)
    if plan is None:
        return
    devices, parts = [device for device, _ in plan], [number for _, number in plan]
    assert devices == sorted(set(devices))
    assert sum(parts) == len(needs.layers)
    assert all(parts)
    assert all(needed <= free[device] for needed, device in zip(needs.on_each(parts), devices, strict=True))
    # No device after those that are needed.
    assert not fits_somehow(needs, free[: devices[-1]])


@given(needs, st.lists(st.integers(0, 30), min_size=2, max_size=4), st.integers(1, 9))
def test_what_is_reserved_is_free_on_the_last_device(needs: SegmentBytes, free: list[int], reserved: int) -> None:
    plan = plan_segments(replace(needs, last=needs.last + reserved), free)

    if plan is not None:
        assert needs.on_each([number for _, number in plan])[-1] + reserved <= free[plan[-1][0]]


def test_devices_are_filled_equally() -> None:
    assert plan_segments(SegmentBytes((10,) * 12, first=20, last=20), [150, 150]) == [(0, 6), (1, 6)]
    assert plan_segments(SegmentBytes((10,) * 12), [40, 200, 40]) == [(0, 2), (1, 10)]


# from a config to a placement

SPEC = DecoderSpec(
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    vocab_size=128256,
    layers=(LayerSpec(None, RotarySpec(10000.0, 128)),) * 32,
)


def large(folder: Path, *, backend: Any = "torch", **changes: Any) -> ResolvedModel:
    """A model of Llama-3.1-8B's sizes, without weights."""
    model = resolved(folder, ModelSettings("large", quant="none", backend=BackendSettings(backend)))
    config = replace(model.config, num_parameters=8_030_000_000, num_weight_bytes=16_060_000_000, vocab_rows=128256)
    decoder = None if config.decoder is None else SPEC
    config = replace(config, decoder=decoder, max_positions=131072, dtype="bfloat16")
    return replace(model, config=config, **changes)


def placed(model: ResolvedModel) -> Placement:
    return in_segments(choose_placement(model.settings, model.config, from_gguf=False), model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_toy(tmp_path / "toy", model=random_toy(num_hidden_layers=3))


def test_a_model_too_large_for_one_gpu_runs_in_segments_of_its_own_decoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, 14 * GIB, 14 * GIB, 14 * GIB)
    model = large(folder)
    chosen = placed(model)

    assert runs_own_decoder(model, chosen)
    assert [part.device for part in chosen.segments] == ["cuda:0", "cuda:1"]
    assert sum(part.num_layers for part in chosen.segments) == 32
    assert (chosen.device, chosen.device_name) == ("cuda:0", "cuda:0-1")
    assert chosen.layer_devices(32)[0] == "cuda:0"
    assert chosen.layer_devices(32)[-1] == "cuda:1"
    assert gpus.ROOM_NOT_SPEED in chosen.remarks


def test_a_model_that_transformers_runs_is_left_to_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 14 * GIB, 14 * GIB)
    model = large(folder, backend="transformers")
    chosen = placed(model)

    assert (chosen.spread, chosen.segments) == (True, ())
    assert not runs_own_decoder(model, chosen)


def test_a_model_that_fits_one_gpu_stays_in_one_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 24 * GIB, 24 * GIB)

    assert placed(large(folder)).segments == ()


def test_a_gpu_without_room_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, GIB // 2, 40 * GIB)
    chosen = placed(large(folder))

    assert chosen.segments == (DeviceLayers("cuda:1", 32),)
    assert (chosen.device, chosen.spread, chosen.device_name) == ("cuda:1", False, "cuda:1")


@pytest.mark.fault("F46")
def test_layers_that_can_not_be_divided_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, *[GIB + GIB // 2] * 14)

    error = fails(MemoryShortageError, lambda: placed(large(folder)), "CUDA")

    assert "cuda:" not in error.message, "no single one of them is too small"


def test_room_for_the_draft_is_left_on_the_last_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 14 * GIB, 14 * GIB)
    large_draft = large(folder, role="draft")

    def draft_with(layers: tuple[LayerSpec, ...]) -> ResolvedModel:
        return replace(large_draft, config=replace(large_draft.config, decoder=replace(SPEC, layers=layers)))

    draft = draft_with(SPEC.layers[:2])
    alone, with_draft = placed(large(folder)), placed(leaving_room(large(folder), draft))

    assert with_draft.segments[-1].num_layers < alone.segments[-1].num_layers
    # A draft that leaves no room for the target does not stop it: it goes where most room is.
    monster = draft_with(12 * SPEC.layers)
    assert placed(leaving_room(large(folder), monster)) == alone


def test_a_draft_goes_where_its_target_ends_or_where_most_room_is(folder: Path) -> None:
    draft = resolved(folder, ModelSettings("draft"), role="draft")
    needed = int(gpus.draft_bytes(draft, draft.config) / USABLE) + 1

    def device(draft: ResolvedModel, free: dict[str, int]) -> str:
        return on_gpu(draft, "cuda:1", free).settings.device

    assert device(draft, {"cuda:0": 10 * needed, "cuda:1": needed}) == "cuda:1"
    assert device(draft, {"cuda:0": needed, "cuda:1": needed - 2, "cuda:2": 3 * needed}) == "cuda:2"
    assert device(draft, {"cuda:1": needed}) == "auto"
    assert device(draft, {"cuda:0": needed // 2, "cuda:1": needed // 3}) == "auto"
    smaller = int(gpus.draft_bytes(draft, draft.config, "nf4") / USABLE) + 1
    assert smaller < needed
    assert device(draft, {"cuda:0": smaller, "cuda:1": 0}) == "cuda:0"
    chosen = replace(draft, settings=replace(draft.settings, device="cuda:0"))
    assert device(chosen, {"cuda:0": 0, "cuda:1": 10 * needed}) == "cuda:0"


def test_a_draft_is_placed_beside_its_loaded_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Target:
        device = torch.device("cuda:1")

    pretend_gpus(monkeypatch, 10 * GIB, 5 * GIB)
    draft = resolved(folder, ModelSettings("draft"), role="draft")

    assert beside_target(draft, Target()).settings.device == "cuda:1"  # type: ignore[arg-type]
    Target.device = torch.device("cpu")
    assert beside_target(draft, Target()) is draft  # type: ignore[arg-type]
    assert beside_target(draft, None) is draft


# loading


@pytest.mark.parametrize("parts", [(1, 2), (1, 1, 1)])
def test_a_model_in_segments_writes_the_text_of_one_piece(
    folder: Path, parts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolved(folder, ModelSettings("toy", quant="none", dtype="float32", device="cpu"))
    whole = load_weights(model, 320)
    segments = tuple(DeviceLayers("cpu", number) for number in parts)
    made: list[TraceRecorder] = []
    monkeypatch.setattr(weights, "recorder_for", lambda _: made.append(TraceRecorder()) or made[-1])
    monkeypatch.setattr(weights, "in_segments", lambda placement, _: replace(placement, spread=True, segments=segments))

    loaded = load_weights(model, 320)

    assert isinstance(loaded.model, StaticModel)
    assert isinstance(loaded.model.static_pass, SegmentedPass)
    assert len(made) == len(parts)
    assert all(recorder.traces for recorder in made)
    assert (loaded.notices, loaded.info.num_bytes) == (whole.notices, whole.info.num_bytes)
    texts = [
        ids_of(run_events(each.model, LookupDrafter(), PROMPT, max_new_tokens=40, num_draft_tokens=4))
        for each in (whole, loaded)
    ]
    assert texts[0] == texts[1]


class FailingRecorder:
    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("no graphs today\nsecond line")


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("backend", ["torch", "transformers"])
@pytest.mark.fast("torch-*")
def test_a_model_that_can_not_be_recorded_runs_plainly_with_one_notice(
    folder: Path, backend: Any, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings("toy", quant="none", dtype="float32", device="cpu", backend=BackendSettings(backend))
    model = resolved(folder, settings, role=role)
    plain = load_weights(model, 320)
    monkeypatch.setattr(weights, "recorder_for", lambda _: FailingRecorder())

    loaded = load_weights(model, 320)

    assert type(loaded.model) is type(plain.model)
    assert plain.notices == ()
    (notice,) = loaded.notices
    assert notice.endswith("no graphs today")
    texts = [ids_of(run_events(each.model, LookupDrafter(), PROMPT, max_new_tokens=20)) for each in (plain, loaded)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("backend", ["own", "transformers"])
def test_cuda_is_prepared_before_any_pass(folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    pretend_gpus(monkeypatch, GIB)
    monkeypatch.setattr(weights, "prepare_cuda", lambda: done.append("prepared"))
    monkeypatch.setattr(weights, "runs_own_decoder", lambda *_: backend == "own")

    def loading(*_: Any) -> Any:
        done.append("loaded")
        raise DeviceError("enough")

    monkeypatch.setattr(weights, "_load_own", loading)
    monkeypatch.setattr(weights, "load_transformers", loading)
    with pytest.raises(DeviceError):
        load_weights(resolved(folder, ModelSettings("toy", quant="none", dtype="float32", device="cuda")), 320)

    assert done == ["prepared", "loaded"]


def test_each_tensor_is_read_to_the_device_of_its_layer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, str] = {}
    original = TensorFiles.read

    def noting(self: TensorFiles, *names: str, device: str) -> torch.Tensor:
        read.update(dict.fromkeys(names, device))
        return original(self, *names)

    monkeypatch.setattr(TensorFiles, "read", noting)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    model = resolved(folder, ModelSettings("toy", quant="none", dtype="float32", device="cpu"))
    segments = (DeviceLayers("cuda:0", 1), DeviceLayers("cuda:1", 2))
    weights.load_own_decoder(model, Placement("cuda:0", True, "float32", "none", (), segments=segments))

    layers = {name.split(".")[2]: device for name, device in read.items() if ".layers." in name}
    assert layers == {"0": "cuda:0", "1": "cuda:1", "2": "cuda:1"}
    rest = {name: device for name, device in read.items() if ".layers." not in name}
    assert rest == {
        "model.embed_tokens.weight": "cuda:0",
        "model.norm.weight": "cuda:1",
        "lm_head.weight": "cuda:1",
    }


# memory


def test_on_cuda_the_plan_counts_capacity_logits_and_graphs(folder: Path) -> None:
    config = resolved(folder, ModelSettings("toy")).config
    placements = [Placement(device, False, "bfloat16", "none", ()) for device in ("cpu", "cuda:0")]
    on_cpu, on_cuda = (plan_memory(folder, config, placed, 500) for placed in placements)

    # 500 tokens and 17 rows of padding are more than a capacity of 512.
    assert (cuda_capacity(495), cuda_capacity(496)) == (512, 1024)
    assert on_cuda.cache == 2 * on_cpu.cache
    assert (on_cpu.graphs, on_cuda.graphs) == (0, GRAPH_BYTES + 17 * 320 * 4)
    longer_chunk = on_cuda.activations - on_cpu.activations
    assert longer_chunk > 0
    assert on_cuda.required - on_cpu.required == on_cpu.cache + on_cuda.graphs + longer_chunk
    assert on_cuda.total - on_cuda.required == on_cuda.copies


@pytest.mark.parametrize(
    ("changes", "backend", "has_long_chunks"),
    [({}, "auto", True), ({"attention_soft_cap": 50.0}, "auto", False), ({}, "transformers", False)],
    ids=["own decoder", "soft-capped attention", "transformers"],
)
def test_the_plan_counts_the_prompt_in_the_passes_that_read_it(
    folder: Path, changes: dict[str, Any], backend: BackendName, has_long_chunks: bool
) -> None:
    config = resolved(folder, ModelSettings("toy", backend=BackendSettings(backend))).config
    if config.decoder is not None:
        config = replace(config, decoder=replace(config.decoder, **changes))
    placements = [Placement(device, False, "bfloat16", "none", ()) for device in ("cpu", "cuda:0")]

    on_cpu, on_cuda = (plan_memory(folder, config, placed, 500) for placed in placements)

    # On a CPU, all of them read 512 tokens in a pass.
    assert (on_cuda.activations > on_cpu.activations) == has_long_chunks


def test_a_gpu_must_hold_the_cache_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = large(folder)
    weights_only = needed_bytes(model.config, "bfloat16", "none")
    # Llama-3.1-8B: 128 KiB a token, and a capacity of 8192 for 4096 tokens and the padding.
    assert cuda_bytes(model.config, "bfloat16", "none") == (
        weights_only + 8192 * 128 * 1024 + 17 * 128256 * 4 + GRAPH_BYTES
    )
    pretend_gpus(monkeypatch, int(weights_only / USABLE) + 1, 24 * GIB)

    assert placed(model).spread


def test_sizes_of_a_model_on_transformers_come_from_its_config(folder: Path) -> None:
    config = replace(resolved(folder, ModelSettings("toy")).config, decoder=None, vocab_rows=None, max_positions=100)
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "hidden_size": 32}

    def cache(values: dict[str, Any]) -> int:
        needed = cuda_bytes(replace(config, values=values), "float16", "none")
        return needed - needed_bytes(config, "float16", "none") - GRAPH_BYTES

    assert cache(sizes) == cache({"text_config": sizes}) == 2 * 3 * 2 * 8 * 512 * 2
    assert cache({**sizes, "head_dim": 16}) == 2 * cache(sizes)
    assert cache({}) == 0


def pair_of(folder: Path, draft: Path | None = None) -> Pair:
    settings = ModelSettings(str(folder), quant="none")
    if draft is None:
        return resolve_pair(PairSettings(settings, "none"))
    return resolve_pair(PairSettings(settings, "model", ModelSettings(str(draft), quant="none")))


def test_doctor_plans_each_gpu_of_a_spread_target(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = save_toy(tmp_path / "draft", model=random_toy(1))
    config = resolved(folder, ModelSettings("toy")).config
    needs = segment_bytes(config, Placement("cuda:0", True, "bfloat16", "none", ()), 512)
    pair = pair_of(folder, draft)
    assert pair.draft is not None
    one_layer = needs.each + needs.first + needs.layers[0]
    two_layers = needs.each + needs.last + 2 * needs.layers[0] + gpus.draft_bytes(pair.draft, config)
    pretend_gpus(monkeypatch, *(int(space / USABLE) + 100 for space in (one_layer, two_layers)))

    report = examine_pair(pair, 400)

    target, of_draft = report.models
    assert target.device == "cuda:0-1"
    assert list(target.required_by_device) == ["cuda:0", "cuda:1"]
    assert of_draft.device == "cuda:1"
    first, last = report.devices
    assert (first.device, last.device) == ("cuda:0", "cuda:1")
    assert first.needed < one_layer + target.memory.activations  # the cache of 400 tokens is half that of 512
    assert last.needed == target.required_by_device["cuda:1"] + of_draft.memory.required
    assert all(device.fits for device in report.devices)
    text = " ".join(format_pair(report).plain.split())
    assert gpus.ROOM_NOT_SPEED in text
    assert target.memory.graphs > 0
    assert f" {format_size(target.memory.graphs)} " in text


def test_doctor_divides_a_model_of_transformers_by_the_free_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = cuda_bytes(resolved(folder, ModelSettings("toy")).config, "bfloat16", "none")
    pretend_gpus(monkeypatch, needed, 3 * needed)
    pair = resolve_pair(
        PairSettings(ModelSettings(str(folder), quant="none", backend=BackendSettings("transformers")), "none")
    )

    (target,) = examine_pair(pair, 400).models

    assert 3 * target.required_by_device["cuda:0"] == pytest.approx(target.required_by_device["cuda:1"], rel=0.01)


@pytest.mark.parametrize("version", ["0.49.2", "0.45.0", "0.9"])
def test_an_old_bitsandbytes_is_not_used_for_4_bits_on_cuda(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = placement.check_bitsandbytes
    pretend_gpus(monkeypatch, 10**11)
    monkeypatch.setattr(placement, "check_bitsandbytes", checked)
    monkeypatch.setattr(placement, "version_of", lambda _: version)

    chosen = choose_placement(ModelSettings("m"), CONFIG, from_gguf=False)

    assert chosen.quant == "none"
    assert f"bitsandbytes {version}" in " ".join(chosen.remarks)
    fails(
        DeviceError,
        lambda: choose_placement(ModelSettings("m", quant="nf4"), CONFIG, from_gguf=False),
        version,
        "bitsandbytes>=0.50",
    )
    check_bitsandbytes("nf4", "cpu")
