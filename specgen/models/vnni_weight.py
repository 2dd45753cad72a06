"""Multiplies rows by a weight of few bits, which is read once: for CPUs with VNNI, on Linux.

A decoding pass waits for its weights. torch's and bitsandbytes' kernels for CPUs are made for one row or for many.
Here a weight is read once, in the order of its addresses, and multiplied by all rows while it is in the registers.
Sums are integers, so a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.core.machine import cpu_flags
from specgen.models.native_code import Function, NativeCode, host_features, openmp_parallel

WIDE_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
"""What vectors of 64 bytes need, by LLVM's names."""
BLOCK_VALUES = 2**18
"""Values that are converted at once."""
FLIP = 0x80
"""Turns a signed byte into an unsigned one that is greater by 128: the instruction multiplies unsigned by signed."""


_Arguments = ctypes.c_int64 * 12


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions of a weight format.

    Args:
        width: Bytes of a vector.
        quantize: Rounds rows of float32 to int8: addresses of the rows, the results, their scales, and -128 times their
            sums; then the numbers of rows and columns, and a byte that flips bits of the results.
        run: Rounds rows and computes all their outputs: addresses of the arguments of `multiply` in the code, of the
            rows, and of OpenMP's entry point, and the number of threads.
    """

    code: NativeCode
    width: int
    quantize: Function
    run: Function

    def __deepcopy__(self, memo: object) -> Kernels:
        """Returns itself: copies of a layer share the code."""
        return self

    def round_rows(self, rows: Tensor, values: Tensor, scales: Tensor, excesses: Tensor, flip: int = 0) -> None:
        """Rounds each row to whole numbers from -127 to 127.

        Args:
            rows: float32 `[n, size]`, contiguous; size is a multiple of 16.
            values: Receives the rounded rows `[n, size]`.
            scales: Receives what one step of each row is, float32 `[n]`.
            excesses: Receives -128 times the sum of each rounded row, int32 `[n]`.
            flip: Bits of the results to flip.
        """
        tensors = (rows, values, scales, excesses)
        self.quantize(*[tensor.data_ptr() for tensor in tensors], *rows.shape, flip)


def kernels_for_this_machine(text: Callable[[int], str]) -> Kernels | None:
    """Compiles a format's kernels.

    None if the CPU has no VNNI, llvmlite is not installed, the system allows no new code, or torch's OpenMP library is
    not where torch's own packages have it.

    Args:
        text: Returns them in LLVM IR, for vectors of so many bytes.
    """
    width = vector_bytes()
    try:
        return compile_kernels(text, width) if width else None
    except RuntimeError:
        return None


def vector_bytes() -> int:
    """Returns the bytes of this machine's vectors with VNNI; 0 if it can't compile kernels or find torch's threads."""
    if not cpu_flags() & {"avx512_vnni", "avx_vnni"}:
        return 0
    try:
        features = host_features()
        width = 64 if features >= WIDE_FEATURES else 32 if "avxvnni" in features else 0
        return width if width and openmp_parallel() is not None else 0
    except (ImportError, OSError, RuntimeError):
        return 0


def compile_kernels(text: Callable[[int], str], width: int) -> Kernels:
    """Compiles kernels for vectors of `width` bytes: 64 for AVX512-VNNI, 32 for AVX-VNNI."""
    return kernels_of(NativeCode(text(width)), width)


def kernels_of(code: NativeCode, width: int) -> Kernels:
    """Returns the functions of compiled code."""
    return Kernels(code, width, code.function("quantize", 7), code.function("run", 4))


class VnniWeight:
    """Base of the weights that the kernels multiply.

    Args:
        shape: Outputs and inputs.
        bias: float32 `[outputs]`.
        kernels: What multiplies it.
        group: The kernels compute this many outputs at once. The last group may have outputs that are not used.
        block: Inputs of a row that share a scale.
    """

    _values: Tensor
    _scales: Tensor

    def __init__(
        self, shape: torch.Size, bias: Tensor | None, kernels: Kernels, *, group: int = 1, block: int | None = None
    ) -> None:
        self.shape = shape
        self._num_outputs, self._num_inputs = shape
        self._num_computed = -(-self._num_outputs // group) * group
        self._block = block or self._num_inputs
        self._kernels = kernels
        self._bias = floats(self._num_computed).zero_()
        if bias is not None:
            self._bias[: self._num_outputs] += bias

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, the scales and the bias."""
        return sum(tensor.nbytes for tensor in {id(t): t for t in (self._values, self._scales, self._bias)}.values())

    def unpacked(self) -> Tensor:
        """Returns a new copy of the weight, float32 `[outputs, inputs]`."""
        raise NotImplementedError

    def multiply(self, rows: Tensor) -> Tensor:
        """Turns float32 inputs `[n, inputs]` into float32 outputs `[n, outputs]`.

        Raises:
            TypeError: The inputs are of another type or size, or on another device.
        """
        num_rows, num_inputs = rows.shape
        # The kernels get addresses: with another type, size or device they would read other memory.
        if rows.dtype != torch.float32 or rows.device.type != "cpu" or num_inputs != self._num_inputs:
            raise TypeError(f"expected float32 rows of {self._num_inputs} on the CPU, got {rows.dtype}, {rows.shape}")
        outputs = floats(num_rows, self._num_computed)
        if num_rows:
            rows = rows.contiguous()
            num_facts = num_inputs // self._block
            # The rounded rows, and then their scales and excesses: four bytes each.
            num_bytes, num_fact_bytes = num_rows * num_inputs, 4 * num_rows * num_facts
            scratch = torch.empty(num_bytes + 2 * num_fact_bytes, dtype=torch.uint8, device="cpu")
            first = scratch.data_ptr()
            arguments = _Arguments(
                *(tensor.data_ptr() for tensor in (self._values, self._scales, self._bias)),
                *(first, first + num_bytes, first + num_bytes + num_fact_bytes, outputs.data_ptr()),
                *(self._num_computed, num_inputs, num_rows, num_facts, 0),
            )
            run = self._kernels.run
            run(ctypes.addressof(arguments), rows.data_ptr(), openmp_parallel() or 0, torch.get_num_threads())
        return outputs[:, : self._num_outputs]


def floats(*sizes: int) -> Tensor:
    """Returns a new float32 tensor. torch's defaults of type and device may have been changed by other code."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")


def integers(*sizes: int) -> Tensor:
    """Returns a new int32 tensor."""
    return torch.empty(sizes, dtype=torch.int32, device="cpu")
