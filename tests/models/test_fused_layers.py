"""Layers whose products compute norms and activations themselves give what the layers gave before."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.decoder_model import DecoderModel
from specgen.models.float_weight import FloatWeight
from specgen.models.formats import Int8Linear, Nf4Linear
from specgen.models.fused_layers import FusedFeedForward, fuse, last_norm
from specgen.models.int8_code import int8_tiles
from specgen.models.int8_weight import Int8Weight
from specgen.models.kernel_code import kernel_text
from specgen.models.kernels import float_kernels, int8_kernels, nf4_kernels
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import NativeWeight, Prologue, kernels_of
from specgen.models.nf4_weight import Nf4Weight
from specgen.models.packing import packed_linear
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import GELU, NORM, NOTHING, SILU
from tests.decoders import decoder_of
from tests.models.test_decoder import BUILDERS, FAMILIES, build

needs_kernel = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")


def weights() -> list[NativeWeight]:
    int8, nf4 = int8_kernels(), nf4_kernels()
    assert int8 is not None
    assert nf4 is not None
    bfloat16 = float_kernels(torch.bfloat16)
    assert bfloat16 is not None
    return [
        Int8Weight(torch.randn(100, 256), None, int8),
        Nf4Weight(torch.randn(100, 256), None, nf4),
        FloatWeight(torch.randn(100, 256).bfloat16(), None, bfloat16),
    ]


def error(outputs: Tensor, reference: Tensor) -> float:
    return float(((outputs - reference).norm(dim=1) / reference.norm(dim=1)).max())


@needs_kernel
def test_a_norm_before_a_product_is_that_of_torch() -> None:
    norm, rows = torch.rand(256) + 0.5, torch.randn(19, 256) * torch.logspace(-4, 3, 19)[:, None]
    for weight in weights():
        outputs = weight.multiply(rows, Prologue(NORM, norm, 1e-6))

        # A value halfway between two steps may be rounded to either.
        assert error(outputs, weight.multiply(functional.rms_norm(rows, (256,), norm, 1e-6))) < 0.01
        assert torch.equal(torch.cat([weight.multiply(row[None], Prologue(NORM, norm, 1e-6)) for row in rows]), outputs)


@needs_kernel
@pytest.mark.parametrize("kind", [SILU, GELU])
def test_an_activation_before_a_product_is_that_of_torch(kind: int) -> None:
    rows = torch.randn(19, 512) * torch.logspace(-4, 3, 19)[:, None]
    gates, ups = rows.chunk(2, dim=1)
    activated = functional.silu(gates) if kind == SILU else functional.gelu(gates, approximate="tanh")
    for weight in weights():
        outputs = weight.multiply(rows, Prologue(kind))

        assert error(outputs, weight.multiply(activated * ups)) < 0.01
        assert error(outputs, weight.multiply(Prologue(kind).applied(rows))) < 0.01
        assert torch.equal(torch.cat([weight.multiply(row[None], Prologue(kind)) for row in rows]), outputs)


@needs_kernel
def test_the_rows_of_a_long_prompt_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, rows = Prologue(NORM, torch.rand(256) + 0.5, 1e-6), torch.randn(60, 256)
    for weight in weights():
        together = weight.multiply(rows, norm)
        monkeypatch.setattr(weight, "_rows_at_once", 24)

        with patch.object(weight, "_compute", wraps=weight._compute) as compute:
            assert torch.equal(weight.multiply(rows, norm), together)

        assert [len(call.args[0]) for call in compute.call_args_list] == [24, 24, 12]


@needs_kernel
@pytest.mark.parametrize("kind", [NORM, SILU, GELU])
def test_what_is_not_a_number_stays_in_its_row(kind: int) -> None:
    rows = torch.randn(3, 256 if kind == NORM else 512)
    rows[1, 7] = torch.nan
    for weight in weights():
        outputs = weight.multiply(rows, Prologue(kind, torch.ones(256), 1e-6))

        assert [bool(torch.isfinite(row).all()) for row in outputs] == [True, False, True]


@needs_kernel
def test_rows_of_another_size_are_refused() -> None:
    with pytest.raises(TypeError, match=r"float32\D*512\b"):
        weights()[0].multiply(torch.ones(1, 256), Prologue(SILU))


@needs_kernel
@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (NORM, "fadd float %mean, %epsilon", "fadd float %mean, 1.0"),
        (NORM, "fmul <16 x float> %scaled, %w", "fmul <16 x float> %scaled, %scaled"),
        (SILU, "fmul <16 x float> %activated, %up", "fmul <16 x float> %activated, %gate"),
        (SILU, "%is_below, <16 x float> %small", "%is_below, <16 x float> %up"),
        (GELU, "br i1 %is_gelu", "br i1 false"),
        (GELU, "fmul <16 x float> %gate, %slope", "fmul <16 x float> %slope, %slope"),
    ],
)
@pytest.mark.fast("2-fmul*", "3-br*")
def test_a_planted_bug_is_noticed(kind: int, old: str, new: str) -> None:
    vectors = cpu_vectors()
    assert vectors is not None
    text = kernel_text(int8_tiles(vectors), PROLOGUES)
    assert old in text
    planted = Int8Weight(torch.randn(100, 256), None, kernels_of(NativeCode(text.replace(old, new)), vectors))
    rows, norm = 0.3 * torch.randn(4, 256 if kind == NORM else 512), torch.rand(256) + 0.5
    gates, ups = rows[:, :256], rows[:, -256:]
    usual = (functional.silu(gates) if kind == SILU else functional.gelu(gates, approximate="tanh")) * ups
    if kind == NORM:
        usual = functional.rms_norm(rows, (256,), norm, 1e-6)

    outputs = planted.multiply(rows, Prologue(kind, norm, 1e-6))

    assert not error(outputs, planted.multiply(usual)) < 0.05


@needs_kernel
@pytest.mark.parametrize("name", [*BUILDERS, *(name for name in FAMILIES if name not in BUILDERS)])
@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
@pytest.mark.fast("Nf4Linear-gemma3", "Int8Linear-*3*", "Int8Linear-llama*", "Int8Linear-granite")
def test_a_fused_decoder_computes_what_it_computed_before(name: str, kind: type[Int8Linear] | type[Nf4Linear]) -> None:
    def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return packed_linear(weight, kind, bias)

    decoder = decoder_of(build(name), linear)
    ids = [5 + 3 * index % 80 for index in range(30)]
    expected = DecoderModel(copy.deepcopy(decoder), 96).logits(ids, 30)

    for layer in decoder.layers:
        fuse(layer)

    # Rounding to 8 bits amplifies the last bit of a norm to a step.
    assert error(DecoderModel(decoder, 96).logits(ids, 30), expected) < 0.05
    if isinstance(decoder.layers[0].mlp.down_proj, kind):
        assert isinstance(decoder.layers[0].function.feed_forward, FusedFeedForward)
    assert torch.equal(
        DecoderModel(copy.deepcopy(decoder), 96).logits(ids, 30), DecoderModel(decoder, 96).logits(ids, 30)
    )


def test_layers_on_other_kernels_stay() -> None:
    decoder = decoder_of(build("llama"))
    layer = decoder.layers[0]
    function = copy.copy(layer.function)

    assert fuse(layer).function == function
    assert last_norm(decoder.norm, decoder.layers) is decoder.norm
    assert Prologue().kind == NOTHING
