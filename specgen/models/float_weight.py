"""Holds weights in bfloat16 or float16 for a kernel of our own, which computes in float32.

FBGEMM's kernel for float16 computes six rows at once and reads the weights again for the next six. torch's for bfloat16
rounds inputs and sums to it, and is fast on CPUs with AVX512-BF16 only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.models.float_rows import BLOCK_OUTPUTS, INPUTS_UNIT
from specgen.models.native_code import floats
from specgen.models.native_weight import Kernels, NativeWeight

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

    def unpacked(self) -> Tensor:
        """As in `NativeWeight`."""
        return self._values.float()
