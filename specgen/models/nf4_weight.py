"""Holds weights in nf4 for a kernel of our own.

The values are those of bitsandbytes' nf4, rounded to steps of 1/127, with the same blocks; the scales are bfloat16.
Inputs are rounded to int8 with a scale for each block, so that one large input does not coarsen the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.models.native_code import Function, floats
from specgen.models.native_weight import WEIGHT_STEPS, NativeWeight, RoundingKernels
from specgen.models.nf4_code import levels
from specgen.models.nf4_records import BLOCK, record_bytes
from specgen.models.weight_memory import empty


def fits_nf4_kernel(weight: Tensor) -> bool:
    """Returns whether a weight `[outputs, inputs]` has the sizes that the kernels compute."""
    return weight.shape[1] % BLOCK == 0 and weight.numel() > 0 and weight.device.type == "cpu"


class Nf4Weight(NativeWeight):
    """A weight in nf4.

    Args:
        weight: `[outputs, inputs]`, of any float type; `fits_nf4_kernel`.
        bias: float32 `[outputs]`.
        kernels: What multiplies it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: RoundingKernels) -> None:
        vectors = kernels.vectors
        group = vectors.lanes
        super().__init__(weight.shape, bias, kernels, group=group, block=BLOCK)
        num_groups, num_blocks = self.num_computed // group, self._num_inputs // BLOCK
        self._values = empty((num_groups, num_blocks, record_bytes(vectors)), torch.uint8, weight.device)
        # The scales are in the records.
        self._scales = floats(0)
        pack: Function = kernels.code.function("pack", 4)
        wide = empty((group, self._num_inputs), torch.float32, weight.device)
        values = torch.empty(wide.shape, dtype=torch.uint8, device="cpu")
        factor = WEIGHT_STEPS / levels(vectors)[-1]
        scales = floats(group * num_blocks)
        for index in range(num_groups):
            part = weight[index * group : (index + 1) * group]
            wide[: len(part)] = part
            wide[len(part) :] = 0
            kernels.round_weights(wide.view(-1, BLOCK), values, scales)
            short_scales = (scales * factor).to(torch.bfloat16)
            pack(values.data_ptr(), short_scales.data_ptr(), self._values[index].data_ptr(), num_blocks)

    def unpacked(self) -> Tensor:
        """As in `NativeWeight`."""
        num_groups, num_blocks, _ = self._values.shape
        vectors = self.kernels.vectors
        group = vectors.lanes
        num_scale_bytes = 2 * group
        fours = self._values[:, :, :-num_scale_bytes].view(num_groups, num_blocks, BLOCK // 8, group, 4)
        codes = torch.stack([fours & 15, fours >> 4], dim=3)
        steps = torch.tensor(levels(vectors), dtype=torch.float32, device="cpu")[codes.int()]
        # [groups, blocks, eights, halves, outputs, 4]
        values = steps.permute(0, 4, 1, 2, 3, 5).reshape(num_groups, group, num_blocks, BLOCK)
        scales = self._values[:, :, -num_scale_bytes:].contiguous().view(torch.bfloat16).transpose(1, 2)
        return (values * scales.float()[..., None]).reshape(self.num_computed, -1)[: self._num_outputs]
