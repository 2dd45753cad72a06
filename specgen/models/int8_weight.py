"""Holds weights in int8 for a kernel of our own.

FBGEMM's kernels are made for many rows: on two threads of an Intel Xeon, weights in memory, eight rows take 1.55 times
as long as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.models.int8_code import LINE_BYTES
from specgen.models.native_code import floats
from specgen.models.native_weight import BLOCK_VALUES, NativeWeight, RoundingKernels
from specgen.models.weight_memory import empty

MIN_OUTPUTS = 4


def fits_int8_kernel(weight: Tensor) -> bool:
    """Returns whether a weight `[outputs, inputs]` has the sizes that the kernels compute."""
    num_outputs, num_inputs = weight.shape
    return num_outputs >= MIN_OUTPUTS and num_inputs % LINE_BYTES == 0 and weight.device.type == "cpu"


class Int8Weight(NativeWeight):
    """A weight in int8, with one scale for each output.

    Args:
        weight: `[outputs, inputs]`, of any float type; `fits_int8_kernel`.
        bias: float32 `[outputs]`.
        kernels: What multiplies it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: RoundingKernels) -> None:
        super().__init__(weight.shape, bias, kernels)
        num_outputs, num_inputs = weight.shape
        self._values = empty(weight.shape, torch.uint8, weight.device)
        self._scales = floats(num_outputs)
        num_rows = min(max(BLOCK_VALUES // num_inputs, 1), num_outputs)
        wide = empty((num_rows, num_inputs), torch.float32, weight.device)
        for first in range(0, num_outputs, num_rows):
            rows = slice(first, first + num_rows)
            part = wide[: len(weight[rows])].copy_(weight[rows])
            kernels.round_weights(part, self._values[rows], self._scales[rows])

    def unpacked(self) -> Tensor:
        """As in `NativeWeight`."""
        return (self._values.float() - 128) * self._scales[:, None]
