"""Our own int8 kernel gives exact sums, for any number of rows and any instruction set that this machine has."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specgen.models import cpu_vectors, formats, kernels, native_code
from specgen.models.formats import Int8Linear, NativeInt8Linear
from specgen.models.int8_code import int8_tiles
from specgen.models.int8_weight import Int8Weight
from specgen.models.kernel_code import kernel_text
from specgen.models.kernels import compiled_int8, int8_kernels
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import RoundingKernels, kernels_of
from specgen.models.packing import packed_linear
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import CpuVectors
from tests.fakes import threads
from tests.models.vectors import ALL_VECTORS, compile_kernels

needs_kernel = pytest.mark.skipif(cpu_vectors.cpu_vectors() is None, reason="needs AVX2")


def num_steps(vectors: CpuVectors) -> int:
    """Returns the largest whole number that inputs are rounded to."""
    return 127 if vectors.has_vnni else 63


def expected(weight: Int8Weight, bias: Tensor, rows: Tensor, vectors: CpuVectors) -> Tensor:
    """Multiplies in float64, after rounding each row to steps of its own."""
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_min(formats.TINY) / num_steps(vectors)
    rounded = (rows * (1 / scales)).round().double()
    return (rounded @ weight.unpacked().double().T * scales + bias).float()


def made(kernels: RoundingKernels, sizes: tuple[int, int], scale: float = 1.0) -> tuple[Int8Weight, Tensor, Tensor]:
    torch.manual_seed(sizes[0])
    weight, bias = scale * torch.randn(sizes), torch.randn(sizes[0])
    return Int8Weight(weight, bias, kernels), weight, bias


def kernel_weight(weight: Tensor, bias: Tensor | None = None) -> Int8Weight:
    kernels = int8_kernels(len(weight))
    assert kernels is not None
    return Int8Weight(weight, bias, kernels)


@pytest.mark.parametrize("vectors", ALL_VECTORS)
@pytest.mark.parametrize("sizes", [(4, 64), (7, 128), (33, 576), (130, 192)])
def test_each_row_has_its_own_exact_sums(vectors: CpuVectors, sizes: tuple[int, int]) -> None:
    packed, weight, bias = made(compile_kernels(int8_tiles, vectors), sizes)
    # Rounding to int8 is at most half a step away.
    assert bool(((packed.unpacked() - weight).abs() <= weight.abs().amax(1, keepdim=True) / 253).all())
    for num_rows in [*range(1, 20), 50]:
        rows = torch.randn(num_rows, sizes[1]) * torch.logspace(-3, 3, num_rows)[:, None]
        outputs = packed.multiply(rows)

        reference = expected(packed, bias, rows, vectors)
        # A value halfway between two steps may be rounded to either.
        step = rows.abs().amax(1, keepdim=True) / num_steps(vectors) * weight.abs().max()
        assert bool(((outputs - reference).abs() <= 2 * step + 1e-5 * reference.abs()).all())
        assert float(((outputs - reference).abs() > 1e-5 * (1 + reference.abs())).float().mean()) < 0.02
        assert torch.equal(torch.cat([packed.multiply(row[None]) for row in rows]), outputs)


@needs_kernel
@given(st.integers(4, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_whole_numbers_are_multiplied_exactly(num_outputs: int, num_rows: int, blocks: int, seed: int) -> None:
    kernels = int8_kernels(num_outputs)
    assert kernels is not None
    generator = torch.Generator().manual_seed(seed)

    def whole(count: int, largest: int) -> Tensor:
        values = torch.randint(-largest, largest + 1, (count, 64 * blocks), generator=generator).float()
        values[:, 0] = largest
        return values

    weight, rows = whole(num_outputs, 127), whole(num_rows, num_steps(kernels.vectors))

    outputs = Int8Weight(weight, None, kernels).multiply(rows)

    assert torch.equal(outputs, rows @ weight.T)


@needs_kernel
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_overflow(sign: int) -> None:
    size = 2**16

    for num_outputs, input_sign in itertools.product((4, 32), (-1, 1)):
        outputs = kernel_weight(sign * torch.ones(num_outputs, size)).multiply(input_sign * torch.ones(2, size))

        assert torch.equal(outputs, torch.full((2, num_outputs), float(input_sign * sign * size)))


@pytest.mark.parametrize("vectors", ALL_VECTORS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sub i32 0, %greater_bits", "add i32 0, %greater_bits"),
        ("ptr %w0, i64 %size", "ptr %w0, i64 0"),
        ("i32 3, i32", "i32 2, i32"),
    ],
)
@pytest.mark.fast("*-AVX-VNNI")
def test_a_planted_bug_is_noticed(vectors: CpuVectors, old: str, new: str) -> None:
    text = kernel_text(int8_tiles(vectors), PROLOGUES)
    assert old in text
    kernels = kernels_of(NativeCode(text.replace(old, new)), vectors)
    packed, _, bias = made(kernels, (33, 128))
    rows = torch.randn(3, 128)

    assert float((packed.multiply(rows) - expected(packed, bias, rows, vectors)).abs().max()) > 1


@needs_kernel
@pytest.mark.parametrize("num_outputs", [4, 32])
def test_what_is_not_a_number_stays_in_its_row(num_outputs: int) -> None:
    rows = torch.ones(3, 64)
    rows[0, 3], rows[2, 5] = math.nan, math.inf

    outputs = packed_linear(torch.ones(num_outputs, 64), Int8Linear, torch.ones(num_outputs))(rows)

    assert [bool(torch.isfinite(row).all()) for row in outputs] == [False, True, False]


@needs_kernel
def test_a_layer_keeps_the_shape_of_its_inputs() -> None:
    layer = packed_linear(torch.randn(96, 64), Int8Linear)
    rows = torch.randn(2, 3, 64)

    outputs = layer(rows)

    assert isinstance(layer, NativeInt8Linear)
    assert outputs.shape == (2, 3, 96)
    assert torch.equal(layer(rows.transpose(0, 1)).transpose(0, 1), outputs)
    assert torch.equal(layer(rows[1, 2]), outputs[1, 2])


@needs_kernel
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(num_threads: int) -> None:
    layer = packed_linear(torch.randn(1000, 64), Int8Linear)
    rows = torch.randn(5, 64)
    outputs = layer(rows)

    with threads(num_threads):
        assert torch.equal(layer(rows), outputs)


def test_layers_of_other_sizes_run_on_torch_s_kernel() -> None:
    layers = [packed_linear(torch.ones(sizes), Int8Linear) for sizes in ((3, 64), (8, 96))]

    assert not any(isinstance(layer, NativeInt8Linear) for layer in layers)


@pytest.fixture
def forgotten() -> Iterator[None]:
    compiled_int8.cache_clear()
    yield
    compiled_int8.cache_clear()


def raising(error: Exception) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("cpu_flags", frozenset),
        ("cpu_flags", lambda: frozenset({"avx"})),
        ("host_features", raising(ImportError("no llvmlite"))),
        # A hypervisor hides what the system lists: LLVM would end the process.
        ("host_features", lambda: frozenset({"avx", "avx512f"})),
        ("openmp_parallel", lambda: None),
        ("openmp_parallel", raising(OSError("no library"))),
        ("NativeCode", raising(RuntimeError("no new code in memory"))),
    ],
)
def test_a_machine_that_lacks_something_has_no_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: Callable[..., object]
) -> None:
    monkeypatch.setattr(kernels if name == "NativeCode" else cpu_vectors, name, replacement)

    assert int8_kernels() is None
    assert not isinstance(packed_linear(torch.ones(64, 64), Int8Linear), NativeInt8Linear)


@needs_kernel
def test_code_that_may_not_run_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_code, "_is_executable", lambda _: False)

    with pytest.raises(RuntimeError, match="memory"):
        compile_kernels.__wrapped__(int8_tiles, CpuVectors(32, has_vnni=False))


@needs_kernel
def test_memory_of_values_is_not_executable() -> None:
    assert not native_code._is_executable(torch.zeros(64).data_ptr())


@needs_kernel
@pytest.mark.parametrize(
    "rows",
    [
        torch.ones(1, 64, dtype=torch.bfloat16),
        torch.ones(1, 64, dtype=torch.float64),
        torch.ones(1, 128),
        torch.ones(1, 64, device="meta"),
    ],
)
def test_other_inputs_are_refused(rows: Tensor) -> None:
    with pytest.raises(TypeError, match=r"float32\D*64\b"):
        kernel_weight(torch.ones(4, 64)).multiply(rows)


@needs_kernel
def test_no_rows_have_no_outputs() -> None:
    assert kernel_weight(torch.ones(4, 64)).multiply(torch.empty(0, 64)).shape == (0, 4)


@needs_kernel
def test_changed_defaults_of_torch_do_not_matter() -> None:
    weight, rows = torch.randn(33, 64), torch.randn(3, 64)
    expected_outputs = kernel_weight(weight).multiply(rows)
    torch.set_default_dtype(torch.bfloat16)
    try:
        outputs = kernel_weight(weight).multiply(rows)
    finally:
        torch.set_default_dtype(torch.float32)

    assert torch.equal(outputs, expected_outputs)


@needs_kernel
def test_a_bias_may_be_a_view() -> None:
    bias = torch.arange(8.0)[::2]

    assert torch.equal(kernel_weight(torch.zeros(4, 64), bias).multiply(torch.ones(1, 64))[0], bias)


@needs_kernel
def test_very_small_rows_are_multiplied() -> None:
    outputs = kernel_weight(torch.full((4, 64), 1e30)).multiply(torch.full((1, 64), 1e-35))

    assert torch.allclose(outputs, torch.full((1, 4), 64e-5), rtol=1e-2)


@needs_kernel
def test_a_copy_of_a_layer_computes_the_same() -> None:
    layer, rows = packed_linear(torch.randn(8, 64), Int8Linear), torch.randn(2, 64)

    assert torch.equal(copy.deepcopy(layer)(rows), layer(rows))


@pytest.mark.parametrize(
    ("features", "flags", "expected_vectors"),
    [
        ("", "", CpuVectors(32, has_vnni=False)),
        ("avx512f avx512bw avx512vl", "avx512f", CpuVectors(32, has_vnni=False)),
        ("avxvnni", "avx_vnni", CpuVectors(32)),
        ("avx512f avx512bw avx512vl avx512vnni", "avx512f avx512_vnni", CpuVectors(64)),
        # Hidden by torch's setting for tests, ATEN_CPU_CAPABILITY=avx2.
        ("avx512f avx512bw avx512vl avx512vnni", "", CpuVectors(32, has_vnni=False)),
    ],
)
def test_kernels_run_on_the_widest_vectors_that_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, features: str, flags: str, expected_vectors: CpuVectors
) -> None:
    monkeypatch.setattr(cpu_vectors, "cpu_flags", lambda: frozenset({"avx2", *flags.split()}))
    monkeypatch.setattr(cpu_vectors, "host_features", lambda: frozenset({"avx2", "fma", "f16c", *features.split()}))
    monkeypatch.setattr(cpu_vectors, "openmp_parallel", lambda: 1)

    assert cpu_vectors.cpu_vectors() == expected_vectors


def test_threads_that_need_a_kernel_at_once_compile_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def compile_slowly(_: object) -> int:
        compiled.append(len(compiled))
        time.sleep(0.05)
        return compiled[-1]

    monkeypatch.setattr(kernels, "_on_this_machine", compile_slowly)
    compiled_int8.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(lambda _: int8_kernels(16), range(4)))
    finally:
        compiled_int8.cache_clear()

    assert (found, compiled) == ({0}, [0])
