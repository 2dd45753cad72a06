"""Linear layers in the formats of bitsandbytes: int8, nf4 and fp4. The library is imported when one is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specgen.core.machine import cpu_flags
from specgen.models.gemm_4bit import GemmNf4Linear, fits_gemm

KERNEL_ROWS, KERNEL_COLUMNS = 32, 64
"""Blocks of the 4-bit kernel for CPUs: outputs and inputs are multiples of these."""


def quantized_linear(weight: Tensor, bias: Tensor | None, quant: str) -> nn.Module:
    """Quantizes a linear layer.

    Args:
        weight: `[outputs, inputs]` in the compute type.
        bias: `[outputs]`.
        quant: `int8`, `nf4` or `fp4`.
    """
    if quant == "nf4":
        return nf4_linear(weight, bias)
    layer: nn.Module = _int8_linear(weight, bias) if quant == "int8" else _four_bit_linear(weight, bias, quant)
    return layer


def is_quantized(module: nn.Module) -> bool:
    """Returns whether a module has layers in a format of bitsandbytes."""
    kinds = {type(part).__module__.partition(".")[0] for part in module.modules()}
    return "bitsandbytes" in kinds or any(
        isinstance(part, KernelNf4Linear | GemmNf4Linear) for part in module.modules()
    )


def nf4_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Returns a layer with 4-bit weights, on the device's own kernel where there is one."""
    if fits_gemm(weight):
        return GemmNf4Linear(weight, bias)
    layer = _four_bit_linear(weight, bias, "nf4")
    if fits_nf4(weight):
        return KernelNf4Linear(layer)
    module: nn.Module = layer
    return module


def fits_nf4(weight: Tensor) -> bool:
    """Returns whether a weight can be quantized to nf4, and is faster then on this machine."""
    if weight.device.type == "cuda":
        return fits_gemm(weight)
    fits = weight.shape[0] % KERNEL_ROWS == 0 and weight.shape[1] % KERNEL_COLUMNS == 0
    return fits and weight.dtype == torch.bfloat16 and has_nf4_kernel(weight.device)


def has_nf4_kernel(device: torch.device) -> bool:
    """Returns whether 4-bit products of bfloat16 are fast: bitsandbytes has a kernel for CPUs with AVX512-BF16."""
    if device.type != "cpu" or "avx512_bf16" not in cpu_flags():
        return False
    from bitsandbytes import functional as kernels

    has_kernel: Any = kernels.has_avx512bf16
    return bool(has_kernel())


class KernelNf4Linear(nn.Module):
    """A 4-bit layer that calls bitsandbytes' CPU operator itself: 40 microseconds of Python less per product.

    Args:
        layer: A `bitsandbytes.nn.Linear4bit` whose shape the kernel takes.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        # The layer converts its weights to the kernel's layout when it runs first.
        layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
        state = layer.weight.quant_state
        assert state.packing_format_for_cpu, "bitsandbytes has a kernel for this weight"
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._weight, self._scales = layer.weight.data, state.absmax
        self._bias = None if layer.bias is None else layer.bias.data.to(torch.bfloat16)
        self._code, self._block = state.code, state.blocksize
        self._shape = [self.out_features, self.in_features]
        self._operator: Any = torch.ops.bitsandbytes.gemv_4bit.default
        self.num_bytes = self._weight.nbytes + self._scales.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self._operator(inputs, self._weight, self._shape, self._scales, self._code, self._block)
        return output if self._bias is None else output.add_(self._bias)


def _four_bit_linear(weight: Tensor, bias: Tensor | None, quant: str) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    num_outputs, num_inputs = weight.shape
    has_bias = bias is not None
    layer = layers.Linear4bit(num_inputs, num_outputs, bias=has_bias, compute_dtype=weight.dtype, quant_type=quant)
    layer.weight = layers.Params4bit(weight.detach(), requires_grad=False, quant_type=quant, compress_statistics=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.to(weight.device).eval()


def _int8_linear(weight: Tensor, bias: Tensor | None) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    num_outputs, num_inputs = weight.shape
    # With the library's threshold of 6.0, outlier columns are chosen over all rows at once: a later draft token then
    # changes the logits of an earlier one (by up to 0.13), and the output is no longer the target's.
    layer = layers.Linear8bitLt(num_inputs, num_outputs, bias=bias is not None, has_fp16_weights=False, threshold=0.0)
    layer.weight = layers.Int8Params(weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.to(weight.device).eval()
