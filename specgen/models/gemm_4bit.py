"""4-bit linear layers on CUDA, by bitsandbytes' fused product for one to 512 rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale; rows stay whole if the inputs are a multiple of it."""


class GemmNf4Linear(nn.Module):
    """A layer with nf4 weights that calls `bitsandbytes::gemm_4bit` itself, without the Python of its own layer.

    Projections whose outputs lie side by side are one layer. By the rules of bitsandbytes 0.50 for an H100, the joined
    query, key and value projection of Llama 3.1 8B stays on the fused kernel up to 16 rows, where the query's alone
    leaves it at 8.

    Args:
        weight: `[outputs, inputs]` in the compute type; `inputs` is a multiple of 64.
        bias: `[outputs]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        from bitsandbytes import functional

        assert weight.shape[1] % BLOCK == 0, "a row must consist of whole blocks"
        make: Any = functional.quantize_4bit
        packed, state = make(weight.detach(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
        self.out_features, self.in_features = weight.shape
        self.packed: Tensor = packed.view(-1, 1)
        self.scales: Tensor = state.absmax
        self.bias = None if bias is None else bias.detach().to(weight.dtype)
        self._shape = [self.out_features, self.in_features]
        self._operator: Any = torch.ops.bitsandbytes.gemm_4bit.default
        self.num_bytes = self.packed.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, inputs: Tensor) -> Tensor:
        scales = self.scales if self.scales.dim() == 1 else self.scales.t().reshape(-1)
        outputs: Tensor = self._operator(inputs, self.packed, self._shape, scales, BLOCK, "nf4", bias=self.bias)
        return outputs

    def scales_by_block(self) -> Tensor:
        """Stores the scales by block of inputs from now on, float32 `[inputs / 64, outputs]`, and returns them.

        Our own kernel for few rows reads them so; bitsandbytes gets a copy in its order, for each longer pass.
        """
        if self.scales.dim() == 1:
            self.scales = self.scales.view(self.out_features, -1).t().contiguous()
        return self.scales


def restore_scales(module: nn.Module) -> None:
    """Undoes `scales_by_block` in all layers of a module."""
    for layer in module.modules():
        if isinstance(layer, GemmNf4Linear) and layer.scales.dim() == 2:
            layer.scales = layer.scales.t().reshape(-1)


def fits_gemm(weight: Tensor) -> bool:
    """Returns whether a weight can be a `GemmNf4Linear` on its device, and is fast there."""
    is_half = weight.dtype in (torch.bfloat16, torch.float16)
    return weight.device.type == "cuda" and is_half and weight.shape[1] % BLOCK == 0 and has_gemm()


def has_gemm() -> bool:
    """Returns whether the installed bitsandbytes has the product (0.50): older ones unpack all weights for two rows."""
    import bitsandbytes  # noqa: F401  registers its operators

    return hasattr(torch.ops.bitsandbytes, "gemm_4bit")
