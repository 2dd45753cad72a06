"""Holds weights in bfloat16 or float16 for a kernel of our own, which adds in float32.

FBGEMM's kernel for float16 computes six rows at once and reads the weights again for the next six. torch's for bfloat16
rounds inputs and sums to it, and waits longer for the weights of few rows. On CPUs with AMX our own kernel computes on
it, too: for 8960 x 1536 on two cores of an Intel Xeon (model 207), 1, 8, 17 and 256 rows took 1.07, 1.12, 1.6 and 8.8
ms, on vectors 1.14, 1.65, 3.0 and 35, and by torch's kernel 1.9, 1.7, 2.4 and 4.7. On vectors, AVX512-BF16's product of
bfloat16 was no faster there than a float32 product. On an AMD Zen 5 that product has twice the inputs in the same time,
but each input needs two terms: 8 to 17 rows took 2 to 7 % less time than in float32, too little for kernels of its own.
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

    _tile = BLOCK_OUTPUTS
    _row_value_bytes = 4
    _packs_rows = False

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
