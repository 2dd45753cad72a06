"""Products of a few rows with an int8 weight, in one pass over the weight: for CPUs with VNNI.

A decoding pass waits for its weights. FBGEMM's kernels are made for many rows: on two threads of an Intel Xeon, weights
in memory, eight rows take 1.55 times as long as one. Here a weight is read once, in the order of its addresses, and
multiplied by all rows while it is in the registers. Sums are integers, so a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from specgen.core.machine import cpu_flags
from specgen.models.int8_kernel_code import kernel_text
from specgen.models.native_code import Function, NativeCode, openmp_parallel, run_job
from specgen.models.weight_memory import empty

ALIGNMENT = 64
"""Inputs are a multiple of it: bytes of the widest vector."""
MIN_OUTPUTS = 4
BLOCK_VALUES = 2**18
"""Values that are converted at once."""
FLIP = 0x80
"""Turns a signed byte into an unsigned one that is greater by 128: the instruction multiplies unsigned by signed."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions.

    Args:
        quantize: Rounds rows of float32 to int8: addresses of the rows, the results, their scales and their sums; then
            the numbers of rows and columns, and a byte that flips bits of the results.
        multiply: Computes all outputs of all rows; run by `run_job`.
    """

    code: NativeCode
    quantize: Function
    multiply: Function


@lru_cache(maxsize=1)
def int8_kernels() -> Kernels | None:
    """Returns the kernels for this machine; None if its CPU has no VNNI or llvmlite is not installed."""
    flags = cpu_flags()
    width = 64 if "avx512_vnni" in flags else 32 if "avx_vnni" in flags else 0
    if not width or openmp_parallel() is None:
        return None
    try:
        return compile_kernels(width)
    except (ImportError, OSError, RuntimeError):
        return None


def compile_kernels(width: int) -> Kernels:
    """Compiles the kernels for vectors of `width` bytes: 64 for AVX512-VNNI, 32 for AVX-VNNI."""
    code = NativeCode(kernel_text(width))
    return Kernels(code, code.function("quantize", 7), code.function("multiply", 1))


def fits_int8_kernel(weight: Tensor) -> bool:
    """Returns whether a weight `[outputs, inputs]` has the sizes that the kernels compute."""
    num_outputs, num_inputs = weight.shape
    return num_outputs >= MIN_OUTPUTS and num_inputs % ALIGNMENT == 0 and weight.device.type == "cpu"


class Int8Weight:
    """A weight in int8, with one scale for each output.

    Args:
        weight: `[outputs, inputs]`, of any float type; `fits_int8_kernel`.
        bias: float32 `[outputs]`.
        kernels: What multiplies it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        self._num_outputs, self._num_inputs = weight.shape
        self._kernels = kernels
        self._values = empty(weight.shape, torch.uint8, weight.device)
        self._scales = torch.empty(self._num_outputs)
        sums = torch.empty(self._num_outputs, dtype=torch.int32)
        num_rows = max(BLOCK_VALUES // self._num_inputs, 1)
        wide = empty((min(num_rows, self._num_outputs), self._num_inputs), torch.float32, weight.device)
        for first in range(0, self._num_outputs, num_rows):
            rows = slice(first, first + num_rows)
            part, facts = weight[rows], (self._scales[rows], sums[rows])
            _quantize(kernels, wide[: len(part)].copy_(part), self._values[rows], facts, FLIP)
        self._bias = torch.zeros(self._num_outputs) if bias is None else bias

    def multiply(self, rows: Tensor) -> Tensor:
        """Turns float32 inputs `[n, inputs]` into float32 outputs `[n, outputs]`."""
        rows = rows.contiguous()
        num_rows = rows.shape[0]
        values = torch.empty(num_rows, self._num_inputs, dtype=torch.int8)
        scales, sums = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int32)
        _quantize(self._kernels, rows, values, (scales, sums), 0)
        outputs = torch.empty(num_rows, self._num_outputs)
        tensors = (self._values, self._scales, self._bias, values, scales, sums, outputs)
        numbers = (self._num_outputs, self._num_inputs, num_rows, 0)
        arguments = (ctypes.c_int64 * 11)(*[tensor.data_ptr() for tensor in tensors], *numbers)
        run_job(self._kernels.multiply, arguments)
        return outputs

    def unpacked(self) -> Tensor:
        """Returns a new copy of the weight, float32 `[outputs, inputs]`."""
        return (self._values.float() - 128) * self._scales[:, None]


def _quantize(
    kernels: Kernels, rows: Tensor, values: Tensor, scales_and_sums: tuple[Tensor, Tensor], flip: int
) -> None:
    tensors = (rows, values, *scales_and_sums)
    kernels.quantize(*[tensor.data_ptr() for tensor in tensors], *rows.shape, flip)
