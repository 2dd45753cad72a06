"""Our own nf4 kernel multiplies by the weights that it holds, for any number of rows and any instruction set."""

from __future__ import annotations

import copy
import math
import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specgen.models import weight_memory
from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.formats import Int8Linear, Nf4Linear
from specgen.models.kernel_code import kernel_text
from specgen.models.kernels import nf4_kernels
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import kernels_of
from specgen.models.nf4_code import MAX_ROWS, levels, nf4_tiles
from specgen.models.nf4_records import BLOCK, LEVELS
from specgen.models.nf4_weight import Nf4Weight
from specgen.models.packing import fast_nf4_linear, has_fast_nf4, packed_linear
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import CpuVectors
from tests.fakes import threads
from tests.models.vectors import ALL_VECTORS, compile_kernels

needs_kernel = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
NF4_VALUES = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
NF4_VALUES += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def kernel_weight(weight: Tensor, bias: Tensor | None = None) -> Nf4Weight:
    kernels = nf4_kernels()
    assert kernels is not None
    return Nf4Weight(weight, bias, kernels)


def expected(weight: Nf4Weight, bias: Tensor | float, rows: Tensor) -> Tensor:
    """Multiplies in float64, after rounding each block of a row to 127 steps of its own."""
    blocks = rows.view(len(rows), -1, BLOCK)
    scales = blocks.abs().amax(dim=2, keepdim=True).clamp_min(1e-30) / 127
    rounded = ((blocks * (1 / scales)).round().double() * scales).view(len(rows), -1)
    return (rounded @ weight.unpacked().double().T + bias).float()


def errors(outputs: Tensor, reference: Tensor) -> Tensor:
    return (outputs - reference).norm(dim=1) / reference.norm(dim=1)


@pytest.mark.parametrize("vectors", ALL_VECTORS)
@pytest.mark.parametrize("sizes", [(1, 64), (16, 64), (7, 128), (33, 576), (130, 192)])
def test_each_row_is_multiplied_by_the_weights_alone(vectors: CpuVectors, sizes: tuple[int, int]) -> None:
    torch.manual_seed(sizes[0])
    weight, bias = torch.randn(sizes), torch.randn(sizes[0])
    packed = Nf4Weight(weight, bias, compile_kernels(nf4_tiles, vectors))
    for num_rows in [*range(1, 2 * MAX_ROWS[vectors.num_bytes] + 2), 50]:
        rows = torch.randn(num_rows, sizes[1]) * torch.logspace(-3, 3, num_rows)[:, None]
        outputs = packed.multiply(rows)

        # A value halfway between two steps may be rounded to either.
        assert float(errors(outputs, expected(packed, bias, rows)).max()) < 0.02
        assert float(errors(outputs, expected(packed, bias, rows)).median()) < 1e-5
        assert torch.equal(torch.cat([packed.multiply(row[None]) for row in rows]), outputs)


@needs_kernel
@given(st.integers(1, 40), st.integers(1, 14), st.integers(1, 4), st.integers(0, 2**31))
def test_levels_times_whole_numbers_are_exact(num_outputs: int, num_rows: int, blocks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernels = nf4_kernels()
    assert kernels is not None
    picked = torch.randint(0, 16, (num_outputs, blocks * BLOCK), generator=generator)
    picked[:, ::BLOCK] = 15
    weight = torch.tensor(levels(kernels.vectors)).float()[picked]
    rows = torch.randint(-127, 128, (num_rows, blocks * BLOCK), generator=generator).float()
    rows[:, ::BLOCK] = 127

    packed = kernel_weight(weight)

    assert torch.equal(packed.unpacked(), weight)
    assert torch.equal(packed.multiply(rows), rows @ weight.T)


def test_levels_are_those_of_nf4() -> None:
    assert [round(127 * value) for value in NF4_VALUES] == list(LEVELS)


@needs_kernel
def test_rounding_is_as_exact_as_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(64, 512)
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)

    ours = kernel_weight(weight).unpacked()

    # Without VNNI, levels are rounded to steps twice as large.
    assert float((ours - weight).norm()) < 1.015 * float((theirs - weight).norm())
    # Their values are the same but for the rounding of levels and scales, and for values between two levels.
    assert float((ours - theirs).abs().median()) < 0.01 * float(weight.abs().max())


@needs_kernel
def test_each_weight_is_rounded_to_the_nearest_level() -> None:
    weight = torch.linspace(-127, 127, BLOCK * 40).view(40, BLOCK)
    weight[:, 0] = 127
    nearest_levels = torch.tensor(LEVELS).float()

    unpacked = kernel_weight(weight).unpacked()

    nearest = (weight[..., None] - nearest_levels).abs().amin(dim=-1)
    # The weights are rounded to whole steps first, and without VNNI, levels to steps twice as large.
    assert float(((unpacked - weight).abs() - nearest).max()) <= 2.02


BUGS = [
    ("sub i32 0, %greater_bits", "add i32 0, %greater_bits"),
    ("%moved0 = lshr", "%moved0 = shl"),
    ("%long_scales, <i32 16", "%long_scales, <i32 15"),
    ("mul i64 %num_blocks, 1\n", "mul i64 %num_blocks, 0\n"),
    ("store i32 %word3", "store i32 %word2"),
    # The level of the largest weights, greater by its offset.
    ("i8 {largest}", "i8 {offset}"),
]


# The text of a bug is the same for all vectors, but for that of levels: the most common ones meet all of them.
@pytest.mark.parametrize(
    ("vectors", "old", "new"),
    [
        pytest.param(*vectors.values, *bug, marks=vectors.marks, id=f"{vectors.id}-{index}")
        for vectors in ALL_VECTORS
        for index, bug in enumerate(BUGS)
        if vectors is ALL_VECTORS[-1] or bug in (BUGS[0], BUGS[-1])
    ],
)
@pytest.mark.fast("AVX-VNNI-5", "AVX2-0")
def test_a_planted_bug_is_noticed(vectors: CpuVectors, old: str, new: str) -> None:
    tiles = nf4_tiles(vectors)
    text = kernel_text(tiles, PROLOGUES)
    offset, largest = tiles.weight_offset, tiles.weight_offset + levels(vectors)[-1]
    old, new = old.format(largest=largest), new.format(offset=offset)
    assert old in text
    weight, rows = torch.randn(33, 128), torch.randn(3, 128) * torch.tensor([[1.0], [10.0], [100.0]])
    exact = rows @ weight.T
    planted = Nf4Weight(weight, None, kernels_of(NativeCode(text.replace(old, new)), vectors))

    assert float(errors(kernel_weight(weight).multiply(rows), exact).max()) < 0.2
    assert float(errors(planted.multiply(rows), exact).max()) > 0.3


@needs_kernel
def test_one_large_input_does_not_coarsen_the_other_blocks() -> None:
    packed, rows = kernel_weight(torch.randn(32, 256)), torch.randn(1, 256)
    rows[0, 3] = 1e4
    exact = rows.double() @ packed.unpacked().double().T
    small = rows.clone()
    small[:, :BLOCK] = 0

    outputs = packed.multiply(rows) - packed.multiply(rows * (rows.abs() > 1e3))

    without = small.double() @ packed.unpacked().double().T
    assert float((outputs - without).norm()) < 0.6 * float(without.norm())
    assert float((packed.multiply(rows) - exact).norm() / exact.norm()) < 1e-2


@needs_kernel
def test_what_is_not_a_number_stays_in_its_row() -> None:
    rows = torch.ones(3, 64)
    rows[0, 3], rows[2, 5] = math.nan, math.inf

    outputs = packed_linear(torch.ones(4, 64), Nf4Linear, torch.ones(4))(rows)

    assert [bool(torch.isfinite(row).all()) for row in outputs] == [False, True, False]


@needs_kernel
def test_a_weight_of_zeros_gives_the_bias() -> None:
    bias = torch.arange(5.0)

    assert torch.equal(kernel_weight(torch.zeros(5, 64), bias).multiply(torch.randn(2, 64)), bias.expand(2, 5))


@needs_kernel
def test_a_layer_keeps_the_shape_and_the_type_of_its_inputs() -> None:
    layer = packed_linear(torch.randn(90, 64), Nf4Linear)
    rows = torch.randn(2, 3, 64)

    outputs = layer(rows)

    assert isinstance(layer, Nf4Linear)
    assert outputs.shape == (2, 3, 90)
    assert torch.equal(layer(rows.transpose(0, 1)).transpose(0, 1), outputs)
    assert torch.equal(layer(rows[1, 2]), outputs[1, 2])
    assert layer(rows.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(layer)(rows), outputs)


@needs_kernel
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(num_threads: int) -> None:
    layer = packed_linear(torch.randn(1000, 64), Nf4Linear)
    rows = torch.randn(5, 64)
    outputs = layer(rows)

    with threads(num_threads):
        assert torch.equal(layer(rows), outputs)


@needs_kernel
def test_layers_without_whole_blocks_are_packed_in_int8() -> None:
    layer = packed_linear(torch.ones(8, 96), Nf4Linear)

    assert isinstance(layer, Int8Linear)
    assert not has_fast_nf4(torch.ones(8, 96))
    assert isinstance(fast_nf4_linear(torch.ones(8, 64), None), Nf4Linear)


@needs_kernel
@pytest.mark.parametrize("rows", [torch.ones(1, 64, dtype=torch.float64), torch.ones(1, 128)])
def test_other_inputs_are_refused(rows: Tensor) -> None:
    with pytest.raises(TypeError, match=r"float32\D*64\b"):
        kernel_weight(torch.ones(4, 64)).multiply(rows)


@needs_kernel
def test_a_layer_takes_four_and_a_quarter_bits_per_weight() -> None:
    layer = packed_linear(torch.randn(1600, 640), Nf4Linear)

    assert layer.num_bytes == 1600 * 640 * 17 // 32 + 4 * 1600


@needs_kernel
def test_weights_ask_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Memory(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            asked.append(option)
            raise OSError("this system has none")

    monkeypatch.setattr(weight_memory, "mmap", Memory)

    weight = kernel_weight(torch.ones(2048, 4096))

    assert asked == [mmap.MADV_HUGEPAGE]
    assert float(weight.multiply(torch.ones(1, 4096)).mean()) == pytest.approx(4096, rel=1e-2)
