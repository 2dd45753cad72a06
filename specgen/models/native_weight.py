"""Multiplies rows by a weight on our own kernels, on Linux. The weight is read once.

A decoding pass waits for its weights. torch's and bitsandbytes' kernels for CPUs are made for one row or for many.
Here a weight is read once, in the order of its addresses, and multiplied by all rows while it is in the registers.
Sums are integers, or added in the same order for any number of rows: a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.amx_registers import AMX_LINES, AMX_OUTPUTS
from specgen.models.native_code import Function, NativeCode, bits_of, floats, integers, openmp_parallel
from specgen.models.vector_code import ARGUMENTS, GELU, NORM, NOTHING, SILU, WRITTEN, CpuVectors

BLOCK_VALUES = 2**18
"""Values that are converted at once."""
FLIP = 0x80
"""Turns a signed byte into an unsigned one that is greater by 128."""
WEIGHT_STEPS = 127
"""Weights are rounded to whole numbers up to this one."""
CHUNK_BYTES, UNIT_BYTES = 2**19, 2**13
"""Bytes of the weights that a thread claims at once, at most and at least: see `CLAIM`. A second group of rows finds
them in a cache."""
ROWS_BYTES = 2**22
"""Bytes of the packed rows that are multiplied at once, so that they stay in a cache: for long prompts."""
LEAST_ROWS = 24
"""Rows that are multiplied at once however many bytes they have: one block of the kernel of 16-bit weights."""
_UNWRITTEN = (0,) * len(WRITTEN)
_Arguments = ctypes.c_int64 * len(ARGUMENTS)


@dataclass(frozen=True, slots=True)
class Prologue:
    """What rows go through before a product, in the same call.

    Args:
        kind: `NOTHING`, `NORM`, `SILU` or `GELU`.
        weight: Of the norm, float32 `[inputs]`.
        epsilon: Of the norm.
    """

    kind: int = NOTHING
    weight: Tensor | None = None
    epsilon: float = 0.0

    @property
    def is_gate(self) -> bool:
        """Whether the first half of a row is a gate of the second half."""
        return self.kind in (SILU, GELU)

    def applied(self, rows: Tensor) -> Tensor:
        """Returns what rows are before the product, by torch's functions."""
        if self.is_gate:
            gate, up = rows.chunk(2, dim=-1)
            return (functional.silu(gate) if self.kind == SILU else functional.gelu(gate, approximate="tanh")) * up
        if self.kind == NORM:
            return functional.rms_norm(rows, rows.shape[-1:], self.weight, self.epsilon)
        return rows


NO_PROLOGUE = Prologue()


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions of a weight format.

    Args:
        vectors: What they compute with.
        run: Lets rows go through a prologue, packs them and computes all their outputs: addresses of the arguments of
            the code, of the rows, and of OpenMP's entry point, and the number of threads.
        packs_columns: Rows are packed in columns for AMX, and `AMX_OUTPUTS` are computed at once.
    """

    code: NativeCode
    vectors: CpuVectors
    run: Function
    packs_columns: bool

    def __deepcopy__(self, memo: object) -> Kernels:
        """Returns itself: copies of a layer share the code."""
        return self


@dataclass(frozen=True, slots=True)
class RoundingKernels(Kernels):
    """The functions of a format that rounds rows to int8.

    Args:
        quantize: Rounds rows of float32 to int8: addresses of the rows, the results, their scales, and their sums times
            the negative offset; then the numbers of rows and columns, the largest result, the offset, and a byte that
            flips bits of the results.
    """

    quantize: Function

    def round_weights(self, rows: Tensor, values: Tensor, scales: Tensor) -> None:
        """Rounds each row to whole numbers from -127 to 127, greater by 128 to be unsigned.

        Args:
            rows: float32 `[n, size]`, contiguous; size is a multiple of 16.
            values: Receives the rounded rows, uint8 `[n, size]`.
            scales: Receives what one step of each row is, float32 `[n]`.
        """
        unused = integers(len(rows))
        addresses = [tensor.data_ptr() for tensor in (rows, values, scales, unused)]
        self.quantize(*addresses, *rows.shape, WEIGHT_STEPS, 0, FLIP)


def kernels_of(code: NativeCode, vectors: CpuVectors, *, packs_columns: bool = False) -> RoundingKernels:
    """Returns the functions of compiled code."""
    return RoundingKernels(code, vectors, code.function("run", 4), packs_columns, code.function("quantize", 9))


class NativeWeight:
    """Base of the weights that the kernels multiply.

    Args:
        shape: Outputs and inputs.
        bias: float32 `[outputs]`.
        kernels: What multiplies it.
        group: The kernels compute this many outputs at once. The last group may have outputs that are not used:
            `num_computed` counts them.
        block: Inputs of a row that share a scale.
    """

    _values: Tensor
    _scales: Tensor
    _tile = 16
    """Outputs that are computed at once, or a multiple of them: threads claim whole tiles."""
    _row_value_bytes = 1
    """Bytes of a value of the packed rows, and of the columns."""
    _packs_rows = True
    """Each row is packed before its columns are."""

    def __init__(
        self, shape: torch.Size, bias: Tensor | None, kernels: Kernels, *, group: int = 1, block: int | None = None
    ) -> None:
        self.shape = shape
        self._num_outputs, self._num_inputs = shape
        self.num_computed = -(-self._num_outputs // group) * group
        self._block = block or self._num_inputs
        self.kernels = kernels
        if kernels.packs_columns:
            if self.num_computed < AMX_OUTPUTS:
                raise ValueError(f"the kernels compute {AMX_OUTPUTS} outputs at once, the weight has {shape[0]}")
            self._tile = AMX_OUTPUTS
        self._rows_at_once = max(ROWS_BYTES // (self._row_value_bytes * self._num_inputs), LEAST_ROWS)
        self._bias = floats(self.num_computed).zero_()
        if bias is not None:
            self._bias[: self._num_outputs] += bias

    @property
    def packs_columns(self) -> bool:
        """Whether its kernels pack rows in columns, for AMX."""
        return self.kernels.packs_columns

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, the scales and the bias."""
        return self._values.nbytes + self._scales.nbytes + self._bias.nbytes

    def _outputs_of(self, num_bytes: int) -> int:
        """Returns how many outputs have so many bytes of weights: whole tiles, at least one."""
        return max(num_bytes * self.num_computed // self._values.nbytes // self._tile, 1) * self._tile

    def unpacked(self) -> Tensor:
        """Returns a new copy of the weight, float32 `[outputs, inputs]`."""
        raise NotImplementedError

    def multiply(self, rows: Tensor, prologue: Prologue = NO_PROLOGUE) -> Tensor:
        """Turns float32 inputs `[n, inputs]` into float32 outputs `[n, outputs]`.

        Args:
            rows: Of a gate `[n, 2 * inputs]`.
            prologue: What they go through first.

        Raises:
            TypeError: The inputs are of another type or size, or on another device.
        """
        num_rows, num_inputs = rows.shape
        # The kernels get addresses: with another type, size or device they would read other memory.
        expected = 2 * self._num_inputs if prologue.is_gate else self._num_inputs
        if rows.dtype != torch.float32 or not rows.is_cpu or num_inputs != expected:
            raise TypeError(f"expected float32 rows of {expected} on the CPU, got {rows.dtype}, {rows.shape}")
        # A pass over one token calls this for each product: every call of torch that it saves is measurable.
        rows, outputs = rows.contiguous(), rows.new_empty(num_rows, self.num_computed)
        if self.fits(num_rows):
            self._compute(rows, prologue, outputs)
        else:
            for first in range(0, num_rows, self._rows_at_once):
                part = slice(first, first + self._rows_at_once)
                self._compute(rows[part], prologue, outputs[part])
        return outputs if self.num_computed == self._num_outputs else outputs[:, : self._num_outputs]

    def fits(self, num_rows: int) -> bool:
        """Returns whether so many rows are multiplied at once."""
        return 0 < num_rows <= self._rows_at_once

    def num_scratch(self, num_rows: int, prologue: Prologue) -> int:
        """Returns the number of float32 values that the kernels need for so many rows, without the outputs."""
        # All parts have whole float32 values.
        return sum(self._scratch_bytes(num_rows, prologue)) // 4 + 2 * num_rows * (self._num_inputs // self._block)

    def _scratch_bytes(self, num_rows: int, prologue: Prologue) -> tuple[int, int, int]:
        """Returns the bytes of the rows after the prologue, of the packed rows, and of the columns."""
        num_prepared_bytes = 4 * num_rows * self._num_inputs if prologue.kind != NOTHING else 0
        row_bytes = self._row_value_bytes * self._num_inputs
        if not self.packs_columns:
            return num_prepared_bytes, num_rows * row_bytes, 0
        # A group is read as if it had `AMX_LINES` rows. All groups have the same number of columns (`EVEN_PART`), so
        # the last one may have some without a row.
        num_packed = num_rows + AMX_LINES - 1 if self._packs_rows else 0
        num_columns = num_rows + -num_rows % -(-num_rows // AMX_LINES)
        return num_prepared_bytes, num_packed * row_bytes, num_columns * row_bytes

    def arguments(self, num_rows: int, prologue: Prologue, scratch: int, outputs: int, num_threads: int) -> list[int]:
        """Returns what the kernels read: see `ARGUMENTS`.

        Args:
            num_rows: `fits`.
            prologue: What the rows go through first.
            scratch: Address of `num_scratch` values.
            outputs: Address of the outputs, float32 `[n, num_computed]`.
            num_threads: Threads that compute them.
        """
        num_prepared_bytes, num_packed_bytes, num_column_bytes = self._scratch_bytes(num_rows, prologue)
        num_scales = self._num_inputs // self._block
        packed = scratch + num_prepared_bytes
        columns = packed + num_packed_bytes
        scales = columns + num_column_bytes
        return [
            *(tensor.data_ptr() for tensor in (self._values, self._scales, self._bias)),
            *(packed, columns, scales, scales + 4 * num_rows * num_scales, outputs),
            *(self.num_computed, self._num_inputs, num_rows, num_scales),
            *(prologue.kind, scratch, 0 if prologue.weight is None else prologue.weight.data_ptr()),
            *(bits_of(prologue.epsilon), self._outputs_of(CHUNK_BYTES), self._outputs_of(UNIT_BYTES), num_threads),
            *_UNWRITTEN,
        ]

    def _compute(self, rows: Tensor, prologue: Prologue, outputs: Tensor) -> None:
        """Computes outputs `[n, outputs]` of rows, both contiguous."""
        num_rows, num_threads = rows.shape[0], torch.get_num_threads()
        scratch = rows.new_empty(self.num_scratch(num_rows, prologue))
        arguments = _Arguments(*self.arguments(num_rows, prologue, scratch.data_ptr(), outputs.data_ptr(), num_threads))
        self.kernels.run(ctypes.addressof(arguments), rows.data_ptr(), openmp_parallel() or 0, num_threads)
