"""Threads pack the rows of a product together, and none multiplies before all rows are packed."""

from __future__ import annotations

import ctypes
import itertools
from threading import Thread

import pytest
import torch
from torch import Tensor

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.float_weight import FloatWeight
from specgen.models.int8_code import int8_tiles
from specgen.models.int8_weight import Int8Weight
from specgen.models.kernel_code import kernel_text
from specgen.models.kernels import float_kernels, int8_kernels, nf4_kernels
from specgen.models.native_code import NativeCode, openmp_parallel
from specgen.models.native_weight import NO_PROLOGUE, NativeWeight, Prologue, kernels_of
from specgen.models.nf4_weight import Nf4Weight
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import ARGUMENTS, SILU
from tests.fakes import threads

pytestmark = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
KINDS = ("bfloat16", "float16", "int8", "nf4")


def weight_of(kind: str, num_outputs: int, num_inputs: int) -> NativeWeight:
    torch.manual_seed(num_outputs)
    weight, bias = torch.randn(num_outputs, num_inputs), torch.randn(num_outputs)
    if kind == "int8":
        int8 = int8_kernels(num_outputs)
        assert int8 is not None
        return Int8Weight(weight, bias, int8)
    if kind == "nf4":
        nf4 = nf4_kernels()
        assert nf4 is not None
        return Nf4Weight(weight, bias, nf4)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float16
    kernels = float_kernels(dtype, num_outputs)
    assert kernels is not None
    return FloatWeight(weight.to(dtype), bias, kernels)


def arguments_of(weight: NativeWeight, rows: Tensor, prologue: Prologue) -> tuple[ctypes.Array[ctypes.c_int64], Tensor]:
    """Returns the arguments of a product, and its outputs. The memory after the outputs is scratch memory."""
    num_rows = len(rows)
    num_outputs = num_rows * weight.num_computed
    memory = torch.zeros(num_outputs + weight.num_scratch(num_rows, prologue))
    address = memory.data_ptr()
    numbers = weight.arguments(num_rows, prologue, address + 4 * num_outputs, address, 2)
    return (ctypes.c_int64 * len(numbers))(*numbers), memory[:num_outputs].view(num_rows, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_does_not_change_a_bit(kind: str) -> None:
    # Inputs that are no whole number of parts, and numbers of rows that fill groups of columns in part.
    weight = weight_of(kind, 48, 64 * 15)
    for num_rows in (1, 2, 5, 16, 19, 33):
        rows = torch.randn(num_rows, 2 * 64 * 15)
        by_number = []
        for number in (1, 2, 3):
            with threads(number):
                by_number.append(weight.multiply(rows, Prologue(SILU)))
        assert all(torch.equal(first, second) for first, second in itertools.pairwise(by_number))


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_can_be_used_again(kind: str) -> None:
    assert again_equal(weight_of(kind, 48, 128), torch.randn(5, 128))


def again_equal(weight: NativeWeight, rows: Tensor) -> bool:
    """Returns whether a product with arguments that were used before has the same outputs as one with new ones."""
    arguments, outputs = arguments_of(weight, rows, NO_PROLOGUE)
    for inputs in (torch.randn(rows.shape), rows):
        outputs.zero_()
        weight.kernels.run(ctypes.addressof(arguments), inputs.data_ptr(), openmp_parallel() or 0, 2)
    return torch.equal(outputs, weight.multiply(rows))


def test_a_counter_that_is_not_reset_is_noticed() -> None:
    vectors = cpu_vectors()
    assert vectors is not None
    text, line = kernel_text(int8_tiles(vectors), PROLOGUES), "store i64 0, ptr %counter_at"
    assert line in text
    kernels = kernels_of(NativeCode(text.replace(line, "")), vectors)
    weight, rows = Int8Weight(torch.randn(48, 128), None, kernels), torch.randn(5, 128)

    assert not again_equal(weight, rows)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_thread_waits_for_rows_that_others_pack(kind: str) -> None:
    weight = weight_of(kind, 48, 128)
    rows = torch.randn(5, 2 * 128)
    arguments, outputs = arguments_of(weight, rows, Prologue(SILU))
    order = list(ARGUMENTS)
    arguments[order.index("inputs")] = rows.data_ptr()
    # Another thread has claimed the first row, and is not ready.
    arguments[order.index("rows_claimed")] = 1
    job = weight.kernels.code.function("many_together", 1)
    thread = Thread(target=job, args=(ctypes.addressof(arguments),), daemon=True)
    thread.start()
    thread.join(0.05)
    is_waiting = thread.is_alive()
    nothing = not outputs.any()
    arguments[order.index("rows_done")] += 1
    thread.join(10)

    assert is_waiting
    assert nothing
    assert not thread.is_alive()
    assert outputs.any()
