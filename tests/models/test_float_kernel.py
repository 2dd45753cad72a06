"""The kernel for 16-bit weights computes a row alike alone and in passes of any number of rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.float_code import PACKING, float_code
from specgen.models.float_weight import FLOAT_TYPES, FloatWeight, fits_float_kernel
from specgen.models.kernel_code import complete_text
from specgen.models.kernels import float_kernels
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import Kernels, Prologue
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import NORM, SILU, CpuVectors
from tests.fakes import threads
from tests.models.vectors import ALL_VECTORS, compile_float_kernels

needs_kernel = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
EPSILON = float(torch.finfo(torch.float32).eps)


def made(kernels: Kernels, sizes: tuple[int, int], dtype: torch.dtype) -> tuple[FloatWeight, Tensor, Tensor]:
    torch.manual_seed(sizes[0])
    weight, bias = torch.randn(sizes).to(dtype), torch.randn(sizes[0])
    return FloatWeight(weight, bias, kernels), weight, bias


def assert_product(outputs: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Compares with float64; each of the additions of a sum may round by half a unit of the sum of the sizes."""
    wide = weight.double()
    exact = functional.linear(rows.double(), wide, None if bias is None else bias.double())
    sizes = rows.abs().double() @ wide.abs().T + (0 if bias is None else bias.abs().double())
    assert bool(((outputs - exact).abs() <= 0.5 * EPSILON * (weight.shape[1] / 8 + 8) * sizes).all())


@pytest.mark.parametrize("vectors", ALL_VECTORS)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("sizes", [(12, 32), (13, 96), (47, 576), (130, 704), (26, 2080)])
def test_each_row_has_its_own_sums(vectors: CpuVectors, dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    packed, weight, bias = made(compile_float_kernels(dtype, vectors), sizes, dtype)
    rows = torch.randn(70, sizes[1]) * torch.logspace(-3, 3, 70)[:, None]
    alone = torch.cat([packed.multiply(row[None]) for row in rows])

    assert_product(alone, rows, weight, bias)
    for num_rows in [*range(1, 41), 70]:
        assert torch.equal(packed.multiply(rows[:num_rows]), alone[:num_rows])


@needs_kernel
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_each_finite_value_is_read_as_it_is(dtype: torch.dtype) -> None:
    kernels = float_kernels(dtype)
    assert kernels is not None
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    weight = values.where(values.isfinite(), 0).view(-1, 32)

    outputs = FloatWeight(weight, None, kernels).multiply(torch.eye(32))

    wide = weight.float().T
    # AMX takes subnormal numbers for 0.
    smallest = torch.finfo(torch.float32).tiny if kernels.packs_columns else 0
    assert torch.equal(outputs, wide.where(wide.abs() >= smallest, 0))


@needs_kernel
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 17])
def test_rows_go_through_a_prologue_first(dtype: torch.dtype, num_rows: int) -> None:
    kernels = float_kernels(dtype)
    assert kernels is not None
    packed, weight, bias = made(kernels, (100, 256), dtype)
    norm, rows, pairs = torch.rand(256) + 0.5, torch.randn(num_rows, 256), torch.randn(num_rows, 512)
    gates, ups = pairs.chunk(2, dim=1)

    normed = packed.multiply(rows, Prologue(NORM, norm, 1e-6))
    gated = packed.multiply(pairs, Prologue(SILU))

    for outputs, usual in (
        (normed, functional.rms_norm(rows, (256,), norm, 1e-6)),
        (gated, functional.silu(gates) * ups),
    ):
        expected = functional.linear(usual.double(), weight.double(), bias.double())
        assert float((outputs - expected).norm() / expected.norm()) < (2**-17 if packed.packs_columns else 8 * EPSILON)
    alone = [packed.multiply(row[None], Prologue(NORM, norm, 1e-6)) for row in rows]
    assert torch.equal(torch.cat(alone), normed)


@pytest.mark.parametrize(
    ("prologue", "num_values"),
    [(Prologue(), 64), (Prologue(NORM, torch.rand(64) + 0.5, 1e-6), 64), (Prologue(SILU), 128)],
)
@needs_kernel
def test_torchs_product_rounds_rows_after_the_prologue(prologue: Prologue, num_values: int) -> None:
    kernels = float_kernels(torch.bfloat16)
    assert kernels is not None
    packed, _, _ = made(kernels, (100, 64), torch.bfloat16)
    rows = torch.randn(30, num_values)

    own, rounded = packed.multiply(rows, prologue), packed.multiply_rounded(rows, prologue)

    distance = float((rounded - own).norm() / own.norm())
    assert 0 < distance < torch.finfo(torch.bfloat16).eps


@needs_kernel
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(num_threads: int) -> None:
    kernels = float_kernels(torch.bfloat16)
    assert kernels is not None
    packed, _, _ = made(kernels, (1000, 64), torch.bfloat16)
    rows = torch.randn(5, 64)
    outputs = packed.multiply(rows)

    with threads(num_threads):
        assert torch.equal(packed.multiply(rows), outputs)


@needs_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("num_outputs", [20, 32])
def test_what_is_not_a_number_stays_in_its_row_and_its_output(num_outputs: int, value: float) -> None:
    kernels = float_kernels(torch.bfloat16, num_outputs)
    assert kernels is not None
    weight = torch.ones(num_outputs, 64, dtype=torch.bfloat16)
    rows = torch.ones(5, 64)
    rows[2, 7] = value

    assert FloatWeight(weight, None, kernels).multiply(rows).isfinite().all(1).tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]
    weight[9, 63] = value
    finite = FloatWeight(weight, None, kernels).multiply(torch.ones(5, 64)).isfinite().all(0)
    assert finite.tolist() == [output != 9 for output in range(num_outputs)]


@needs_kernel
def test_a_weight_is_not_copied() -> None:
    kernels = float_kernels(torch.bfloat16, 24)
    assert kernels is not None
    weight = torch.randn(24, 64).to(torch.bfloat16)

    packed = FloatWeight(weight, None, kernels)

    assert packed.stored.data_ptr() == weight.data_ptr()
    assert torch.equal(packed.unpacked(), weight.float())


@pytest.mark.parametrize(
    ("sizes", "dtype", "fits"),
    [
        ((12, 32), torch.bfloat16, True),
        ((12, 32), torch.float16, True),
        ((12, 32), torch.float32, False),
        ((11, 32), torch.bfloat16, False),
        ((12, 48), torch.bfloat16, False),
    ],
)
def test_other_sizes_and_types_do_not_fit(sizes: tuple[int, int], dtype: torch.dtype, fits: bool) -> None:
    assert fits_float_kernel(torch.zeros(sizes, dtype=dtype)) == fits


@needs_kernel
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("store <8 x float> %c0_0", "store <8 x float> %b0_0"),
        ("%i_next = add i64 %i, 16", "%i_next = add i64 %i, 32"),
        ("i64 %in_group\n", "i64 0\n"),
        ("fadd <4 x float> %sum4, %biases", "fadd <4 x float> %sum4, %sum4"),
    ],
)
@pytest.mark.fast("i64*")
def test_a_planted_bug_is_noticed(old: str, new: str) -> None:
    text = complete_text(float_code(32, torch.bfloat16), PROLOGUES, PACKING)
    assert old in text
    code = NativeCode(text.replace(old, new))
    packed, weight, bias = made(
        Kernels(code, CpuVectors(32), code.function("run", 4), packs_columns=False), (47, 576), torch.bfloat16
    )
    rows = torch.randn(3, 576)

    with pytest.raises(AssertionError):
        assert_product(packed.multiply(rows), rows, weight, bias)
