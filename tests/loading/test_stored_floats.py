"""Weights in 16 bits run where they were read: nothing is copied, and a tied head has no memory of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from specgen.core.events import Round
from specgen.core.machine import cpu_flags
from specgen.core.settings import (
    MAX_CHECKED_TOKENS,
    BackendSettings,
    ModelSettings,
    PairSettings,
    Quantization,
    SamplingSettings,
)
from specgen.doctor.examine import examine_pair
from specgen.doctor.memory_plan import plan_memory
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.near_ties import compute_type
from specgen.loading import placement
from specgen.loading.format_timing import TARGET_ROWS, TimedLayer, measure_formats
from specgen.loading.placement import choose_placement
from specgen.loading.weights import load_weights
from specgen.models import float_linear, kernels
from specgen.models.cpu_vectors import may_use_amx
from specgen.models.decoder_model import DecoderModel
from specgen.models.float_linear import MOST_AMX_ROWS, MOST_OWN_ROWS, BFloat16Linear, FloatLinear, NativeFloat16Linear
from specgen.models.float_weight import FloatWeight
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.packing import may_run_kernels
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from tests.draft_heads import head_drafter, load_draft, write_draft
from tests.fakes import always_wrong, assert_close, ids_of, oracle, run_events
from tests.loading.builders import resolved
from tests.toys import random_toy, save_toy

pytestmark = pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")


VOCAB = 320


@pytest.fixture(autouse=True)
def no_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    set_products(monkeypatch, are_there=False)


def set_products(monkeypatch: pytest.MonkeyPatch, *, are_there: bool) -> None:
    """Lets the CPU have bfloat16 products, which torch computes anywhere, or not."""
    flags = cpu_flags() - {"avx512_bf16", "amx_bf16"} | ({"avx512_bf16"} if are_there else set())
    for module in (placement, float_linear):
        monkeypatch.setattr(module, "cpu_flags", lambda: flags)


def stored_in(dtype: torch.dtype, folder: Path, **changes: Any) -> Path:
    return save_toy(folder, model=random_toy(0, **changes).to(dtype))


def loaded(folder: Path, **settings: str) -> DecoderModel:
    chosen = ModelSettings(str(folder), quant="none", device="cpu", **settings)  # type: ignore[arg-type]
    model = load_weights(resolved(folder, chosen), VOCAB).model
    assert isinstance(model, DecoderModel)
    return model


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, BFloat16Linear), (torch.float16, NativeFloat16Linear)])
def test_products_read_the_weights_as_stored(tmp_path: Path, dtype: torch.dtype, kind: type[FloatLinear]) -> None:
    folder = stored_in(dtype, tmp_path / "tiny")
    ids = [5 + 3 * index % 60 for index in range(30)]

    model = loaded(folder)

    products = [part for part in model.module.modules() if hasattr(part, "in_features")]
    assert all(isinstance(part, kind) and part.stored.dtype == dtype for part in products)
    assert not any(isinstance(part, nn.Linear) for part in model.module.modules())
    assert_close(model.logits(ids, 30), loaded(folder, dtype="float32").logits(ids, 30))


def test_a_tied_head_reads_the_embedding(tmp_path: Path) -> None:
    folders = [
        stored_in(torch.bfloat16, tmp_path / str(is_tied), tie_word_embeddings=is_tied) for is_tied in (True, False)
    ]
    models = [load_weights(resolved(folder, ModelSettings(str(folder), quant="none")), VOCAB) for folder in folders]
    tied, apart = (found.model.module for found in models)

    assert tied.head.stored.data_ptr() == tied.embedding.data_ptr()
    assert models[1].info.num_bytes - models[0].info.num_bytes == apart.head.stored.nbytes


@pytest.mark.parametrize(("stored", "is_own"), [(torch.bfloat16, True), (torch.float16, False)])
def test_with_bfloat16_products_only_bfloat16_runs_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, is_own: bool
) -> None:
    set_products(monkeypatch, are_there=True)

    model = loaded(stored_in(stored, tmp_path / "tiny"))

    kinds = {type(part) for part in model.module.modules() if hasattr(part, "in_features")}
    assert kinds == ({BFloat16Linear} if is_own else {nn.Linear})
    assert model.decoder.dtype == (torch.float32 if is_own else torch.bfloat16)


@pytest.mark.parametrize(
    "most_rows",
    [
        MOST_OWN_ROWS,
        pytest.param(MOST_AMX_ROWS, marks=pytest.mark.skipif(not may_use_amx(), reason="needs AMX"), id="AMX"),
    ],
)
def test_bfloat16_products_read_prompts_and_no_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int
) -> None:
    set_products(monkeypatch, are_there=True)
    monkeypatch.setattr(kernels, "may_use_amx", lambda: most_rows == MOST_AMX_ROWS)
    folder = stored_in(torch.bfloat16, tmp_path / "tiny")
    rounded, ids = [], [5 + 3 * index % 60 for index in range(200)]
    multiply = FloatWeight.multiply_rounded
    monkeypatch.setattr(
        FloatWeight, "multiply_rounded", lambda *given: rounded.append(len(given[1])) or multiply(*given)
    )
    target = loaded(folder)

    target.feed(ids[:most_rows])
    assert not rounded
    short = 2 * most_rows + 1
    target.feed(ids[:short])
    assert set(rounded) == {short - most_rows}
    rounded.clear()
    target.feed(ids[:100])
    assert set(rounded) == {100 - short}
    rounded.clear()
    most = MAX_CHECKED_TOKENS
    together = target.logits(ids[: 100 + most], most).clone()
    for index in range(most):
        target.rewind(100 + index)
        assert torch.equal(target.logits(ids[: 101 + index], 1)[0], together[index])
    assert not rounded
    # torch has rounded the prompt's rows, so the logits are near those of float32.
    exact = loaded(folder, dtype="float32").logits(ids[: 100 + most], most)
    distance = float((together - exact).norm() / exact.norm())
    assert 0 < distance < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.thorough
def test_a_draft_after_a_long_prompt_does_not_change_the_greedy_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_products(monkeypatch, are_there=True)
    target, prompt = loaded(stored_in(torch.bfloat16, tmp_path / "tiny")), [5 + 3 * index % 60 for index in range(40)]
    baseline = ids_of(run_events(target, NoDrafter(), prompt, max_new_tokens=60))

    for num_draft_tokens in (3, 20, 40):
        for drafter in (oracle(baseline, len(prompt)), always_wrong(baseline, len(prompt), VOCAB)):
            target.reset()
            events = run_events(target, drafter, prompt, max_new_tokens=60, num_draft_tokens=num_draft_tokens)
            assert ids_of(events) == baseline


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.thorough
def test_a_draft_of_any_length_does_not_change_the_greedy_text(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, prompt = stored_in(dtype, tmp_path / "tiny"), [5, 6, 7]
    target = loaded(folder)
    baseline = ids_of(run_events(target, NoDrafter(), prompt, max_new_tokens=60))

    for num_draft_tokens in (1, 3, 7, 16):
        for drafter in (oracle(baseline, len(prompt)), always_wrong(baseline, len(prompt), VOCAB)):
            target.reset()
            events = run_events(target, drafter, prompt, max_new_tokens=60, num_draft_tokens=num_draft_tokens)
            assert ids_of(events) == baseline
    # Equal texts may be luck: the logits are equal, too.
    ids = [*prompt, *baseline]
    target.rewind(20)
    together = target.logits(ids[:32], 12).clone()
    for index in range(12):
        target.rewind(20 + index)
        assert torch.equal(target.logits(ids[: 21 + index], 1)[0], together[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_draft_head_has_the_format_of_its_target(tmp_path: Path, dtype: torch.dtype) -> None:
    module, prompt = random_toy(0).to(dtype), [5, 6, 7]
    target = loaded(save_toy(tmp_path / "tiny", model=module))
    baseline = ids_of(run_events(target, NoDrafter(), prompt, max_new_tokens=40))
    folder = write_draft(tmp_path / "draft", module, copies_target=True, num_layers=2)
    info = load_draft(folder, target).info

    target.reset()
    events = run_events(target, head_drafter(folder, target, SamplingSettings()), prompt, max_new_tokens=40)

    # The head is the target's own, so it is not counted.
    num_values = sum(weight.numel() for weight in module.model.layers.parameters() if weight.ndim == 2)
    assert info.dtype == str(dtype).removeprefix("torch.")
    assert 2 * num_values < info.num_bytes < 2.5 * num_values
    assert ids_of(events) == baseline
    assert sum(event.num_accepted for event in events if isinstance(event, Round)) > 20


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "changes", "settings", "has_copies"),
    [
        (torch.bfloat16, {}, {}, False),
        (torch.bfloat16, {"head_dim": 4}, {}, True),
        (torch.float16, {"hidden_size": 48, "intermediate_size": 80}, {"dtype": "float16"}, True),
        (torch.float16, {}, {"dtype": "float16", "backend": BackendSettings("transformers")}, True),
    ],
    ids=["as stored", "one layer in float32", "FBGEMM", "transformers"],
)
def test_the_planned_memory_is_that_of_the_weights(
    tmp_path: Path,
    dtype: torch.dtype,
    changes: dict[str, int],
    settings: dict[str, Any],
    has_copies: bool,
    is_tied: bool,
) -> None:
    if settings and not has_float16_matmul():
        pytest.skip("needs FBGEMM's kernels")
    folder = stored_in(dtype, tmp_path / "tiny", tie_word_embeddings=is_tied, **changes)
    model = resolved(folder, ModelSettings(str(folder), quant="none", device="cpu", **settings))
    found = load_weights(model, VOCAB)

    placement = choose_placement(model.settings, model.config, from_gguf=False)
    plan = plan_memory(folder, model.config, placement, 100)

    # Each product on our own kernel also has a float32 bias, and transformers' rotary embedding some frequencies.
    num_outputs = sum(part.out_features for part in found.model.module.modules() if isinstance(part, FloatLinear))
    assert plan.weights == pytest.approx(found.info.num_bytes - 4 * num_outputs, rel=1e-3)
    assert (plan.copies > 0) == has_copies


@pytest.mark.thorough
def test_a_near_tie_is_measured_in_what_the_layers_compute_in(tmp_path: Path) -> None:
    folder = stored_in(torch.bfloat16, tmp_path / "tiny", head_dim=4)
    on_transformers = {"quant": "nf4", "backend": BackendSettings("transformers")}
    infos = [
        load_weights(resolved(folder, ModelSettings(str(folder), device="cpu", **settings)), VOCAB).info  # type: ignore[arg-type]
        for settings in ({"quant": "none"}, on_transformers)
    ]

    # float32 sums of bfloat16 weights, and inputs that are rounded to 8 bits.
    assert [compute_type(info) for info in infos] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("quant", ["none", "int8"])
def test_the_planned_memory_of_a_draft_head_leaves_out_its_targets_head(tmp_path: Path, quant: Quantization) -> None:
    if not has_int8_matmul():
        pytest.skip("needs FBGEMM's kernels")
    module = random_toy(0).to(torch.bfloat16)
    target, draft = save_toy(tmp_path / "tiny", model=module), write_draft(tmp_path / "draft", module, num_layers=2)
    pair = resolve_pair(
        PairSettings(
            ModelSettings(str(target), quant=quant, device="cpu"), "model", ModelSettings(str(draft), quant="none")
        )
    )

    planned = examine_pair(pair, 100).models[1].memory.weights

    info = load_models(pair).draft_info
    assert info is not None
    # Next to an int8 target, it is in float32. The kernel of 16-bit weights also has a bias of each product.
    assert planned == pytest.approx(info.num_bytes, rel=0.1)


@pytest.mark.thorough
@pytest.mark.parametrize(("stored", "kind"), [("bfloat16", BFloat16Linear), ("float16", NativeFloat16Linear)])
@pytest.mark.fast("float16*")
def test_the_kernel_is_what_is_timed_for_weights_as_stored(
    stored: str, kind: type[FloatLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, inputs: (rows.append(len(inputs)), forward(self, inputs))[1])

    measure_formats(["none"], TimedLayer(64, 128, "float32", "cpu", "target", packed_dtype=stored))

    assert set(rows) == set(TARGET_ROWS)


def test_a_width_that_does_not_fit_the_kernel_stays_in_float32(tmp_path: Path) -> None:
    folder = stored_in(torch.bfloat16, tmp_path / "tiny", head_dim=4)

    model = loaded(folder)

    layer = model.decoder.layers[0]
    assert isinstance(layer.attention.o_proj, nn.Linear)
    assert isinstance(layer.mlp.down_proj, BFloat16Linear)
    assert layer.attention.o_proj.weight.dtype == torch.float32
    assert not model.attends_by_row
