"""Multiplies rows by an int8 weight, which is read once: for CPUs with VNNI, on Linux.

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
from specgen.models.native_code import Function, NativeCode, host_features, openmp_parallel, run_job
from specgen.models.weight_memory import empty

ALIGNMENT = 64
"""Inputs are a multiple of it: bytes of the widest vector."""
MIN_OUTPUTS = 4
WIDE_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
"""What vectors of 64 bytes need, by LLVM's names."""
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

    def __deepcopy__(self, memo: object) -> Kernels:
        """Returns itself: copies of a layer share the code."""
        return self


@lru_cache(maxsize=1)
def int8_kernels() -> Kernels | None:
    """Returns the kernels for this machine.

    None if its CPU has no VNNI, llvmlite is not installed, the system allows no new code, or torch's OpenMP library is
    not where torch's own packages have it.
    """
    flags = cpu_flags()
    if not flags & {"avx512_vnni", "avx_vnni"}:
        return None
    try:
        features = host_features()
        width = 64 if features >= WIDE_FEATURES else 32 if "avxvnni" in features else 0
        return compile_kernels(width) if width and openmp_parallel() is not None else None
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
        self._scales = _floats(self._num_outputs)
        sums = torch.empty(self._num_outputs, dtype=torch.int32, device="cpu")
        num_rows = max(BLOCK_VALUES // self._num_inputs, 1)
        wide = empty((min(num_rows, self._num_outputs), self._num_inputs), torch.float32, weight.device)
        for first in range(0, self._num_outputs, num_rows):
            rows = slice(first, first + num_rows)
            part, facts = weight[rows], (self._scales[rows], sums[rows])
            _quantize(kernels, wide[: len(part)].copy_(part), self._values[rows], facts, FLIP)
        self._bias = _floats(self._num_outputs).zero_()
        if bias is not None:
            self._bias += bias

    def multiply(self, rows: Tensor) -> Tensor:
        """Turns float32 inputs `[n, inputs]` into float32 outputs `[n, outputs]`.

        Raises:
            TypeError: The inputs are of another type or size, or on another device.
        """
        num_rows, num_inputs = rows.shape
        # The kernels get addresses: with another type, size or device they would read other memory.
        if rows.dtype != torch.float32 or rows.device.type != "cpu" or num_inputs != self._num_inputs:
            raise TypeError(f"expected float32 rows of {self._num_inputs} on the CPU, got {rows.dtype}, {rows.shape}")
        outputs = _floats(num_rows, self._num_outputs)
        if not num_rows:
            return outputs
        rows = rows.contiguous()
        values = torch.empty(num_rows, self._num_inputs, dtype=torch.int8, device="cpu")
        scales, sums = _floats(num_rows), torch.empty(num_rows, dtype=torch.int32, device="cpu")
        _quantize(self._kernels, rows, values, (scales, sums), 0)
        tensors = (self._values, self._scales, self._bias, values, scales, sums, outputs)
        numbers = (self._num_outputs, self._num_inputs, num_rows, 0)
        arguments = (ctypes.c_int64 * 11)(*[tensor.data_ptr() for tensor in tensors], *numbers)
        run_job(self._kernels.multiply, arguments)
        return outputs

    def unpacked(self) -> Tensor:
        """Returns a new copy of the weight, float32 `[outputs, inputs]`."""
        return (self._values.float() - 128) * self._scales[:, None]


def _floats(*sizes: int) -> Tensor:
    """Returns a new tensor. torch's defaults of type and device may have been changed by other code."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")


def _quantize(
    kernels: Kernels, rows: Tensor, values: Tensor, scales_and_sums: tuple[Tensor, Tensor], flip: int
) -> None:
    tensors = (rows, values, *scales_and_sums)
    kernels.quantize(*[tensor.data_ptr() for tensor in tensors], *rows.shape, flip)
