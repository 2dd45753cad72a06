"""Holds weights in bfloat16 or float16 for a kernel of our own, which computes in float32.

FBGEMM's kernel for float16 computes six rows at once and reads the weights again for the next six. torch's for bfloat16
rounds inputs and sums to it. On CPUs with AMX it is faster from about ten rows on, but takes twice as long for one row:
of 8960 x 1536 on two cores 1.9 ms instead of 1.1, for 8 rows 1.9 and 1.8, for 16 rows 1.9 and 2.8, for 256 rows 11 and
51. With AVX512-BF16's product of bfloat16 instead of a float32 product our own kernel was no faster on that CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.float_rows import BLOCK_OUTPUTS, INPUTS_UNIT
from specgen.models.native_code import floats
from specgen.models.native_weight import Kernels, NativeWeight, Prologue

FLOAT_TYPES = (torch.bfloat16, torch.float16)


def fits_float_kernel(weight: Tensor) -> bool:
    """Returns whether a weight `[outputs, inputs]` has a type and the sizes that the kernels compute."""
    num_outputs, num_inputs = weight.shape
    has_sizes = num_outputs >= BLOCK_OUTPUTS and num_inputs % INPUTS_UNIT == 0
    return has_sizes and weight.dtype in FLOAT_TYPES and weight.device.type == "cpu"


class FloatWeight(NativeWeight):
    """A weight as it is stored. Its memory is not copied.

    Args:
        weight: `[outputs, inputs]`; `fits_float_kernel`.
        bias: float32 `[outputs]`.
        kernels: What multiplies it, for its type.
    """

    _chunk_unit = BLOCK_OUTPUTS
    _row_value_bytes = 4

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        super().__init__(weight.shape, bias, kernels)
        self._values = weight.contiguous()
        self._scales = floats(0)

    @property
    def stored(self) -> Tensor:
        """The weight."""
        return self._values

    def multiply_rounded(self, rows: Tensor, prologue: Prologue) -> Tensor:
        """Does what `multiply` does by torch's product, with the rows in the weight's type after the prologue."""
        prepared = prologue.applied(rows).to(self._values.dtype)
        return functional.linear(prepared, self._values).float().add_(self._bias)

    def unpacked(self) -> Tensor:
        """As in `NativeWeight`."""
        return self._values.float()
