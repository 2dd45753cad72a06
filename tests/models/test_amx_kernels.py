"""Our kernels on AMX: the same sums of whole numbers as on vectors, and a row alike in each pass."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from specgen.models import cpu_vectors
from specgen.models.amx_code import columns_code
from specgen.models.amx_formats import BFLOAT16_COLUMNS, INT8_COLUMNS, bfloat16_amx, int8_amx
from specgen.models.amx_registers import AMX_OUTPUTS
from specgen.models.cpu_vectors import AMX_FEATURES, WIDE_FEATURES, may_use_amx
from specgen.models.float_weight import FloatWeight
from specgen.models.int8_code import int8_tiles
from specgen.models.int8_weight import Int8Weight
from specgen.models.job_code import Job
from specgen.models.kernel_code import complete_text, kernel_text, rounding_code
from specgen.models.kernels import (
    INT8_ROWS_ON_VECTORS,
    compiled_float,
    compiled_int8,
    compiled_nf4,
    float_kernels,
    int8_amx_text,
    int8_kernels,
    nf4_kernels,
)
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import NO_PROLOGUE, Kernels, NativeWeight, Prologue, RoundingKernels, kernels_of
from specgen.models.nf4_code import nf4_tiles
from specgen.models.nf4_weight import Nf4Weight
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import NORM, SILU, CpuVectors
from tests.fakes import threads

needs_amx = pytest.mark.skipif(not may_use_amx(), reason="needs AMX")
EPSILON = float(torch.finfo(torch.float32).eps)
WIDE = CpuVectors(64)
ROW_COUNTS = [*range(1, 41), 49, 70]


def int8_pair(weight: Tensor, bias: Tensor | None = None) -> tuple[Int8Weight, Int8Weight]:
    """Returns a weight on AMX and on vectors."""
    on_amx, on_vectors = compiled_int8(True), compiled_int8(False)
    assert on_amx is not None
    assert on_vectors is not None
    return Int8Weight(weight, bias, on_amx), Int8Weight(weight, bias, on_vectors)


def nf4_kernels_of(is_on_amx: bool) -> RoundingKernels:
    kernels = compiled_nf4(is_on_amx)
    assert kernels is not None
    return kernels


def prepared(kind: str, num_rows: int, num_inputs: int) -> tuple[Tensor, Prologue]:
    """Returns rows of different sizes, and what they go through first."""
    rows = torch.randn(num_rows, num_inputs * (2 if kind == "gate" else 1)) * torch.logspace(-3, 3, num_rows)[:, None]
    if kind == "norm":
        return rows, Prologue(NORM, torch.rand(num_inputs) + 0.5, 1e-6)
    return rows, Prologue(SILU) if kind == "gate" else NO_PROLOGUE


def bfloat16_weight(weight: Tensor, bias: Tensor | None = None) -> FloatWeight:
    kernels = compiled_float(torch.bfloat16, True)
    assert kernels is not None
    return FloatWeight(weight.bfloat16(), bias, kernels)


def assert_product(outputs: Tensor, rows: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Compares with float64: inputs are off by 2^-16 at most, and each addition rounds by half a unit of the sum."""
    wide = weight.double()
    exact = functional.linear(rows.double(), wide, bias.double())
    sizes = rows.abs().double() @ wide.abs().T + bias.abs().double()
    assert bool(((outputs - exact).abs() <= (2**-16 + EPSILON * weight.shape[1] / 32) * sizes).all())


@needs_amx
@pytest.mark.parametrize("sizes", [(32, 64), (33, 128), (130, 576), (1000, 192), (64, 8960)])
@pytest.mark.parametrize("kind", ["nothing", "norm", "gate"])
@pytest.mark.fast(without=("*-sizes4",))
def test_int8_has_the_bits_of_the_kernel_on_vectors(sizes: tuple[int, int], kind: str) -> None:
    torch.manual_seed(sizes[0])
    on_amx, on_vectors = int8_pair(torch.randn(sizes), torch.randn(sizes[0]))

    for num_rows in ROW_COUNTS:
        rows, prologue = prepared(kind, num_rows, sizes[1])
        assert torch.equal(on_amx.multiply(rows, prologue), on_vectors.multiply(rows, prologue))


@needs_amx
@pytest.mark.parametrize("sizes", [(5, 64), (16, 64), (40, 192), (130, 576), (64, 8960)])
@pytest.mark.parametrize("kind", ["nothing", "norm", "gate"])
@pytest.mark.fast(without=("*-sizes4",))
def test_nf4_has_the_bits_of_the_kernel_on_vectors(sizes: tuple[int, int], kind: str) -> None:
    torch.manual_seed(sizes[0])
    weight, bias = torch.randn(sizes), torch.randn(sizes[0])
    on_amx, on_vectors = (Nf4Weight(weight, bias, nf4_kernels_of(is_on_amx)) for is_on_amx in (True, False))

    for num_rows in ROW_COUNTS:
        rows, prologue = prepared(kind, num_rows, sizes[1])
        assert torch.equal(on_amx.multiply(rows, prologue), on_vectors.multiply(rows, prologue))


@needs_amx
@given(st.integers(32, 100), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_whole_numbers_are_multiplied_exactly(num_outputs: int, num_rows: int, blocks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (num_outputs, 64 * blocks)
    weight = torch.randint(-127, 128, sizes, generator=generator).float()
    weight[:, 0] = 127
    rows = torch.randint(-127, 128, (num_rows, sizes[1]), generator=generator).float()
    rows[:, 0] = 127

    assert torch.equal(int8_pair(weight)[0].multiply(rows), rows @ weight.T)
    assert torch.equal(bfloat16_weight(weight).multiply(rows), rows @ weight.T)


@needs_amx
@pytest.mark.parametrize("sizes", [(32, 32), (33, 96), (47, 576), (130, 704), (64, 8960)])
def test_each_row_of_bfloat16_has_its_own_sums(sizes: tuple[int, int]) -> None:
    torch.manual_seed(sizes[0])
    weight, bias = torch.randn(sizes).bfloat16(), torch.randn(sizes[0])
    packed = bfloat16_weight(weight, bias)
    rows = torch.randn(70, sizes[1]) * torch.logspace(-3, 3, 70)[:, None]
    alone = torch.cat([packed.multiply(row[None]) for row in rows])

    assert_product(alone, rows, weight, bias)
    # Inputs rounded to bfloat16 would be off by 2^-8.
    rounded = packed.multiply(rows.bfloat16().float())
    assert float((rounded - alone).norm() / alone.norm()) > 2**-12
    for num_rows in ROW_COUNTS:
        assert torch.equal(packed.multiply(rows[:num_rows]), alone[:num_rows])


@needs_amx
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_products_of_torch_on_amx_disturb_none_of_ours(num_threads: int) -> None:
    weight = torch.randn(1000, 576)
    rows = torch.randn(20, 576)
    packed: list[NativeWeight] = [
        int8_pair(weight)[0],
        bfloat16_weight(weight),
        Nf4Weight(weight, None, nf4_kernels_of(True)),
    ]
    alone = [part.multiply(rows) for part in packed]

    with threads(num_threads):
        of_torch = functional.linear(rows.bfloat16(), weight.bfloat16())
        for _ in range(5):
            assert torch.equal(functional.linear(rows.bfloat16(), weight.bfloat16()), of_torch)
            assert all(torch.equal(part.multiply(rows), outputs) for part, outputs in zip(packed, alone, strict=True))


@needs_amx
def test_weights_of_few_outputs_run_on_vectors() -> None:
    for num_outputs, is_on_amx in ((AMX_OUTPUTS - 1, False), (AMX_OUTPUTS, True)):
        for kernels in (int8_kernels(num_outputs), float_kernels(torch.bfloat16, num_outputs)):
            assert kernels is not None
            assert kernels.packs_columns == is_on_amx
    of_half = float_kernels(torch.float16)
    assert of_half is not None
    assert not of_half.packs_columns
    on_amx = compiled_int8(True)
    assert on_amx is not None
    with pytest.raises(ValueError, match=rf"\b{AMX_OUTPUTS}\b.*\b31\b"):
        Int8Weight(torch.ones(31, 64), None, on_amx)


@needs_amx
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("i8 0, i8 4, i8 6", "i8 0, i8 5, i8 6"),
        ("i8 3, i8 5, i8 7", "i8 3, i8 5, i8 6"),
        ("%row_offset3 = mul i64 %row_bytes, 3", "%row_offset3 = mul i64 %row_bytes, 2"),
        ("%ones = sub i64 %power, 1", "%ones = sub i64 %power, 2"),
        ("%last_block = sub i64 %num_outputs, 32", "%last_block = sub i64 %num_outputs, 48"),
        ("i64 %in_second, i64 %in_block", "i64 %in_block, i64 %in_block"),
        ("%sums, %excesses_wide", "%sums, zeroinitializer"),
        ("ptr %sums3, i64 64, ptr %sums3, i64 64", "ptr %sums2, i64 64, ptr %sums3, i64 64"),
    ],
)
@pytest.mark.fast("*zeroinitializer")
def test_a_planted_bug_in_int8_is_noticed(old: str, new: str) -> None:
    weight, rows = torch.randn(72, 128), torch.randn(19, 128)
    text = rounding_code(int8_tiles(WIDE, INT8_ROWS_ON_VECTORS)) + columns_code(int8_amx())
    code = planted(text, (old, new), INT8_COLUMNS)
    packed = Int8Weight(weight, None, kernels_of(code, WIDE, packs_columns=True))

    assert not torch.equal(packed.multiply(rows), int8_pair(weight)[1].multiply(rows))


@needs_amx
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fsub <16 x float> %inputs1", "fsub <16 x float> %inputs0"),
        ("store <16 x bfloat> %low0", "store <16 x bfloat> %high0"),
        ("%term1 = mul i64 %register_bytes, 1", "%term1 = mul i64 %register_bytes, 0"),
        ("%v3_5, <16 x i32> %v3_13", "%v3_5, <16 x i32> %v3_12"),
        ("fadd <16 x float> %total, %biases", "fadd <16 x float> %total, %total"),
    ],
)
@pytest.mark.fast("fsub*")
def test_a_planted_bug_in_bfloat16_is_noticed(old: str, new: str) -> None:
    weight, bias, rows = torch.randn(72, 128).bfloat16(), torch.randn(72), torch.randn(19, 128)
    code = planted(columns_code(bfloat16_amx()), (old, new), BFLOAT16_COLUMNS)
    packed = FloatWeight(weight, bias, Kernels(code, WIDE, code.function("run", 4), packs_columns=True))

    with pytest.raises(AssertionError):
        assert_product(packed.multiply(rows), rows, weight, bias)


@needs_amx
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("i8 2, ptr %lines", "i8 2, ptr %weight_lines"),
        ("%products_inputs = mul i64 %products_block, 64", "%products_inputs = mul i64 %products_index, 64"),
        ("%weights_record_offset = mul i64 %weights_block", "%weights_record_offset = mul i64 %weights_index"),
        ("store <16 x i32> %high7", "store <16 x i32> %low7"),
        ("%products8, %excesses8", "%products8, %excesses7"),
        ("%sums_from_offset = mul i64 %scales_index, 576", "%sums_from_offset = mul i64 %scales_index, 512"),
    ],
)
@pytest.mark.thorough
def test_a_planted_bug_in_nf4_is_noticed(old: str, new: str) -> None:
    # Two times as many blocks as go through each loop at once, and a few more.
    weight, rows = torch.randn(40, 64 * 35), torch.randn(9, 64 * 35)
    expected = Nf4Weight(weight, None, nf4_kernels_of(False)).multiply(rows)
    text = kernel_text(nf4_tiles(WIDE, on_amx=True), PROLOGUES)
    assert old in text
    kernels = kernels_of(NativeCode(text.replace(old, new)), WIDE)

    assert not torch.equal(Nf4Weight(weight, None, kernels).multiply(rows), expected)


def planted(code: str, change: tuple[str, str], job: Job) -> NativeCode:
    assert change[0] in code
    return NativeCode(complete_text(code.replace(*change), PROLOGUES, job))


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        (int8_amx_text(WIDE), "tdpbusd"),
        (complete_text(columns_code(bfloat16_amx()), PROLOGUES, BFLOAT16_COLUMNS), "tdpbf16ps"),
        (kernel_text(nf4_tiles(WIDE, on_amx=True), PROLOGUES), "tdpbsud"),
    ],
    ids=["int8", "bfloat16", "nf4"],
)
@pytest.mark.fast(without=("nf4",))
def test_code_is_valid_for_a_cpu_with_amx(text: str, instruction: str) -> None:
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    module = llvm.parse_assembly(text)
    module.verify()

    lines = triple.create_target_machine(cpu="sapphirerapids", opt=2).emit_assembly(module).splitlines()

    assert any(instruction in line and "%tmm" in line for line in lines)


ALL_FLAGS = "avx2 avx512_vnni amx_int8 amx_bf16"
ALL_FEATURES = WIDE_FEATURES | AMX_FEATURES


@pytest.mark.parametrize(
    ("flags", "features", "result", "is_used"),
    [
        (ALL_FLAGS, ALL_FEATURES, 0, True),
        # The system has no permission to give, or the process may not ask.
        (ALL_FLAGS, ALL_FEATURES, -1, False),
        ("avx2 amx_int8 amx_bf16", ALL_FEATURES, 0, False),
        ("avx2 avx512_vnni amx_bf16", ALL_FEATURES, 0, False),
        ("avx2 avx512_vnni amx_int8", ALL_FEATURES, 0, False),
        (ALL_FLAGS, ALL_FEATURES - {"amx-int8"}, 0, False),
        (ALL_FLAGS, ALL_FEATURES - {"avx512bf16"}, 0, False),
    ],
)
def test_amx_is_used_where_the_cpu_and_the_system_let_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, features: frozenset[str], result: int, is_used: bool
) -> None:
    class Library:
        def __init__(self, _: None) -> None:
            pass

        def syscall(self, *request: int) -> int:
            # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
            assert request == (158, 0x1023, 18)
            return result

    monkeypatch.setattr(cpu_vectors, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(cpu_vectors, "host_features", lambda: features | {"avx2", "fma", "f16c"})
    monkeypatch.setattr(cpu_vectors, "openmp_parallel", lambda: 1)
    monkeypatch.setattr(ctypes, "CDLL", Library)

    assert may_use_amx.__wrapped__() == is_used


@pytest.mark.skipif(cpu_vectors.cpu_vectors() != WIDE, reason="needs AVX512-VNNI")
def test_without_amx_all_weights_run_on_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.models.kernels.may_use_amx", lambda: False)

    assert int8_kernels() is compiled_int8(False)
    assert float_kernels(torch.bfloat16) is compiled_float(torch.bfloat16, False)
    assert nf4_kernels() is compiled_nf4(False)
    assert "tdpbsud" not in nf4_tiles(WIDE).text


@needs_amx
@pytest.mark.parametrize("num_rows", [1, 16, 17, 33, 49])
def test_no_byte_behind_the_scratch_memory_is_written(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    margins: list[Tensor] = []

    def new_empty(rows: Tensor, *sizes: int) -> Tensor:
        memory = torch.zeros(math.prod(sizes) + 4096)
        margins.append(memory[math.prod(sizes) :])
        return memory[: math.prod(sizes)].view(sizes)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    weight, rows = torch.ones(64, 192), torch.ones(num_rows, 192)

    for packed in (int8_pair(weight)[0], bfloat16_weight(weight), Nf4Weight(weight, None, nf4_kernels_of(True))):
        assert bool((packed.multiply(rows).round() == 192).all())

    assert len(margins) == 6
    assert not any(bool(margin.any()) for margin in margins)


def test_amx_comes_with_wide_vectors() -> None:
    with pytest.raises(ValueError, match=r"AMX.*64.*32"):
        nf4_tiles(CpuVectors(32), on_amx=True)
