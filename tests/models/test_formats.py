"""Packed weights: products equal those of the rounded weights, and drafts of any length give the same text."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from specgen.core.results import BatchInvarianceCheck, ModelInfo, RunInfo
from specgen.core.settings import ModelSettings, SamplingSettings
from specgen.engine.drafters.base import NoDrafter
from specgen.loading import placement
from specgen.loading.config_check import check_folder
from specgen.loading.placement import choose_placement
from specgen.loading.resolved_model import Role
from specgen.loading.weights import load_weights
from specgen.models import formats
from specgen.models.batch_invariance import check_batch_invariance
from specgen.models.build_decoder import MakeLinear
from specgen.models.decoder_model import DecoderModel
from specgen.models.float_linear import BFloat16Linear
from specgen.models.formats import Float16Linear, Int8Linear, has_float16_matmul, has_int8_matmul
from specgen.models.packing import may_run_kernels, pack_model, packed_linear
from tests.decoders import decoder_model
from tests.fakes import always_wrong, assert_close, ids_of, oracle, run_events
from tests.loading.builders import VOCAB, make_folder, resolved
from tests.models.test_decoder import BUILDERS, build

needs_kernels = pytest.mark.skipif(not (has_float16_matmul() and has_int8_matmul()), reason="needs FBGEMM's kernels")
needs_float_kernel = pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")


@pytest.fixture(autouse=True)
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset({"avx2"}))


@needs_kernels
@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 7, 33])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(96, 64), (33, 100), (1, 7)])
def test_a_float16_layer_multiplies_by_the_rounded_weights(num_rows: int, num_outputs: int, num_inputs: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(num_outputs, num_inputs), torch.randn(num_outputs)
    inputs = torch.randn(num_rows, num_inputs)

    outputs = Float16Linear(weight, bias)(inputs)

    expected = inputs.double() @ weight.half().double().T + bias.double()
    assert outputs.dtype == torch.float32
    assert_close(outputs, expected.float())


@needs_kernels
def test_bfloat16_weights_are_exact_in_a_float16_layer() -> None:
    weight = torch.randn(64, 64).bfloat16().float()

    outputs = Float16Linear(weight, None)(torch.eye(64))

    assert torch.equal(outputs.T, weight)


@needs_kernels
def test_an_int8_layer_is_correct_within_its_rounding() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(96, 64), torch.randn(1, 64)

    outputs = Int8Linear(weight, None)(inputs)

    expected = inputs @ weight.T
    assert 0 < float((outputs - expected).abs().max()) < 0.05 * float(expected.abs().max())


@needs_kernels
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_of_an_int8_layer_does_not_depend_on_the_other_rows(has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(96, 64), torch.randn(96) if has_bias else None)
    rows = torch.randn(5, 64)

    outputs = layer(rows)

    assert torch.equal(torch.cat([layer(row[None]) for row in rows]), outputs)
    assert torch.equal(layer(torch.cat([rows[:2], 1e4 * torch.randn(9, 64)]))[:2], outputs[:2])
    assert torch.equal(layer(rows[None])[0], outputs)
    assert torch.equal(layer(rows[0]), outputs[0])


@needs_kernels
def test_a_shared_scale_of_the_rows_would_be_noticed() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(96, 64), None)
    rows = torch.randn(2, 64)

    def dynamic(inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic(inputs, layer._blocks[0], True)
        return product

    assert not torch.equal(dynamic(torch.stack([rows[0], 1e4 * rows[1]]))[0], dynamic(rows[:1])[0])


@needs_kernels
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_cpu_without_vnni_rounds_inputs_to_seven_bits(monkeypatch: pytest.MonkeyPatch, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64), torch.randn(96) if has_bias else torch.zeros(96)
    inputs = torch.randn(3, 64)
    expected = inputs @ weight.T + bias

    def error(keeps_all_bits: bool) -> float:
        monkeypatch.setattr(formats, "keeps_all_bits", lambda: keeps_all_bits)
        outputs = Int8Linear(weight, bias if has_bias else None)(inputs)
        return float((outputs - expected).norm() / expected.norm())

    assert error(False) < 0.03
    # Where all 8 bits can be used, they halve the rounding of the inputs.
    assert not formats.keeps_all_bits() or error(True) < 0.8 * error(False)


@needs_kernels
def test_an_int8_layer_keeps_what_is_not_a_number_in_its_row() -> None:
    inputs = torch.ones(3, 16)
    inputs[0, 3], inputs[2, 5] = math.nan, math.inf

    outputs = Int8Linear(torch.ones(4, 16), torch.ones(4))(inputs)

    assert [bool(torch.isfinite(row).all()) for row in outputs] == [False, True, False]


@needs_kernels
def test_an_int8_layer_accepts_an_output_of_zero_weights() -> None:
    weight = torch.zeros(2, 16)

    assert torch.equal(Int8Linear(weight, None)(torch.ones(1, 16)), torch.zeros(1, 2))


@needs_kernels
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_packed_model_computes_what_its_rounded_weights_give_in_float32(kind: str) -> None:
    model = build(kind)
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear):
            # Not in place: a tied embedding keeps its values.
            layer.weight = nn.Parameter(layer.weight.half().float())

    pack_model(model, Float16Linear)

    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert_close(model(ids).logits.detach(), rounded(ids).logits.detach())


@needs_kernels
def test_a_weight_beyond_float16_keeps_its_layer_in_float32() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = 1e6

    pack_model(model, Float16Linear)

    assert type(model.model.layers[0].self_attn.k_proj) is nn.Linear
    assert isinstance(model.model.layers[1].self_attn.k_proj, Float16Linear)
    assert bool(torch.isfinite(model(torch.tensor([[5, 6]])).logits).all())


def float16_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return packed_linear(weight, Float16Linear, bias)


def bfloat16_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return packed_linear(weight, BFloat16Linear, bias)


def int8_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return packed_linear(weight, Int8Linear, bias)


@needs_kernels
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_packed_decoder_computes_what_transformers_computes_with_packed_layers(kind: str) -> None:
    model = build(kind)
    ours = decoder_model(model, 96, float16_linear)
    pack_model(model, Float16Linear)

    assert_close(ours.logits([5, 6, 7, 8, 9], 5), model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].detach())


@needs_kernels
@pytest.mark.parametrize("linear", [float16_linear, bfloat16_linear, int8_linear])
@pytest.mark.fast("float16_linear")
def test_a_draft_of_any_length_does_not_change_the_greedy_text(linear: MakeLinear) -> None:
    model = build("llama")
    prompt = [5, 6, 7]
    baseline = ids_of(run_events(decoder_model(model, 96, linear), NoDrafter(), prompt, max_new_tokens=40))

    for num_draft_tokens in (1, 3, 6, 11):
        for drafter in (oracle(baseline, len(prompt)), always_wrong(baseline, len(prompt), 96)):
            target = decoder_model(model, 96, linear)
            events = run_events(target, drafter, prompt, max_new_tokens=40, num_draft_tokens=num_draft_tokens)
            assert ids_of(events) == baseline


@needs_kernels
def test_auto_chooses_float16_weights_on_a_cpu_without_bfloat16(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")

    loaded = load_weights(resolved(folder, ModelSettings(str(folder), quant="none")), 96)

    assert (loaded.info.dtype, loaded.info.quant) == ("float16", "none")
    assert "AVX512-BF16" in loaded.info.remark
    assert any(isinstance(layer, Float16Linear) for layer in loaded.model.module.modules())


@needs_kernels
def test_the_info_counts_stored_parameters_and_bytes_in_memory(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    settings = ModelSettings(str(folder), quant="none", dtype="float32")
    float32 = load_weights(resolved(folder, settings), 96).info
    float16 = load_weights(resolved(folder, ModelSettings(str(folder), quant="none")), 96).info

    assert float16.num_parameters == float32.num_parameters
    assert 0.5 * float32.num_bytes < float16.num_bytes < 0.75 * float32.num_bytes  # this file's embedding is float32


@needs_kernels
def test_auto_packs_a_small_draft_in_int8_and_a_small_target_in_float16(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    draft = load_weights(resolved(folder, ModelSettings(str(folder)), role="draft"), 96)

    assert (draft.info.quant, draft.info.dtype) == ("int8", "float32")
    assert any(isinstance(layer, Int8Linear) for layer in draft.model.module.modules())
    assert choose_placement(ModelSettings(""), check_folder(folder), from_gguf=False).packed_dtype == "float16"


@needs_kernels
@pytest.mark.parametrize("role", ["target", "draft"])
def test_requested_int8_is_batch_invariant_for_both_roles(tmp_path: Path, role: Role) -> None:
    folder = make_folder(tmp_path / "tiny")

    loaded = load_weights(resolved(folder, ModelSettings(str(folder), quant="int8"), role=role), VOCAB)

    assert (loaded.info.quant, loaded.info.dtype) == ("int8", "float32")
    assert any(isinstance(layer, Int8Linear) for layer in loaded.model.module.modules())
    assert isinstance(loaded.model, DecoderModel)
    attends_alone = loaded.model.attends_by_row
    assert attends_alone or role == "draft"
    assert check_batch_invariance(loaded.model) == BatchInvarianceCheck(0.0, 0.0, is_exact=attends_alone)


@needs_kernels
@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(
    "linear",
    [
        int8_linear,
        pytest.param(float16_linear, marks=needs_float_kernel),
        pytest.param(bfloat16_linear, marks=needs_float_kernel),
    ],
)
@pytest.mark.fast("*-llama", "int8_linear-qwen*")
def test_passes_of_a_packed_target_equal_passes_over_one_token_bit_for_bit(linear: MakeLinear, kind: str) -> None:
    module, ids = build(kind), [5 + 3 * index % 80 for index in range(40)]
    target = DecoderModel(decoder_model(module, 96, linear).decoder, 96, attends_by_row=True)
    target.feed(ids[:11])
    alone = torch.cat([target.logits(ids[: end + 1], 1).clone() for end in range(11, 40)])

    for num_rows in (2, 5, 17):
        target.rewind(11)
        ends = [*range(11 + num_rows, 40, num_rows), 40]
        rows = [target.logits(ids[:end], end - start).clone() for start, end in pairwise([11, *ends])]
        assert torch.equal(torch.cat(rows), alone)


@needs_kernels
def test_only_targets_with_exact_rows_are_called_exact() -> None:
    def on_torch(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return Float16Linear(weight, bias)

    module = build("llama")

    for linear, is_exact in ((on_torch, False), (int8_linear, True)):
        target = DecoderModel(decoder_model(module, 96, linear).decoder, 96, attends_by_row=True)
        assert check_batch_invariance(target).is_exact is is_exact
    assert check_batch_invariance(decoder_model(module, 96, int8_linear)).is_exact is False
    assert (
        RunInfo(
            *(ModelInfo("m", "int8", "float32", "cpu"), None, "lookup", 4, SamplingSettings(), "default", 8, 0.0),
            batch_invariance=BatchInvarianceCheck(0.0, 0.0, is_exact=True),
        ).guarantee
        == "exact"
    )


def test_requested_float32_is_used(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")

    chosen = choose_placement(ModelSettings("", dtype="float32", quant="none"), check_folder(folder), from_gguf=False)

    assert (chosen.dtype, chosen.packed_dtype) == ("float32", None)


def test_without_the_kernels_float32_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "has_float16_matmul", lambda: False)
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: False)
    facts = check_folder(make_folder(tmp_path / "tiny"))

    assert choose_placement(ModelSettings(""), facts, from_gguf=False).dtype == "float32"
    assert choose_placement(ModelSettings(""), facts, from_gguf=False, role="draft").quant == "none"


@needs_kernels
@pytest.mark.parametrize("kind", [Float16Linear, Int8Linear])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_weight_packed_in_blocks_gives_the_same_products(
    monkeypatch: pytest.MonkeyPatch, kind: type[Float16Linear] | type[Int8Linear], has_bias: bool
) -> None:
    weight, bias, inputs = torch.randn(100, 64), torch.randn(100) if has_bias else None, torch.randn(3, 64)
    whole = kind(weight, bias)

    monkeypatch.setattr(formats, "MAX_PACKED", 64 * 32)
    in_blocks = kind(weight, bias)

    assert torch.equal(in_blocks(inputs), whole(inputs))
    assert in_blocks.num_bytes == whole.num_bytes
    if isinstance(in_blocks, Float16Linear):
        assert torch.equal(in_blocks.unpacked(), weight.half().float())
