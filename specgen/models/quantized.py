"""Linear layers in the formats of bitsandbytes: int8, nf4 and fp4. The library is imported when one is made.

Weights are converted a few rows at a time: the library takes up to 25 bytes per value for it, which would be more than
the model itself for the head of a large vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from specgen.core.machine import cpu_flags
from specgen.models.gemm_4bit import GemmNf4Linear, fits_gemm
from specgen.models.weight_memory import empty

KERNEL_ROWS, KERNEL_COLUMNS = 32, 64
"""Blocks of the 4-bit kernel for CPUs: outputs and inputs are multiples of these."""
BLOCK_SIZE = 64
"""Values with a common scale in the 4-bit formats."""
MAX_CONVERTED = 2**18
"""Values that are converted at once."""


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


def nf4_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Returns a layer with 4-bit weights, on bitsandbytes' fastest kernel for it."""
    if fits_gemm(weight):
        return GemmNf4Linear(weight, bias)
    if fits_nf4(weight):
        return KernelNf4Linear(weight, bias)
    layer: nn.Module = _four_bit_linear(weight, bias, "nf4")
    return layer


def fits_nf4(weight: Tensor) -> bool:
    """Returns whether bitsandbytes has a fast kernel for a weight in nf4."""
    if weight.device.type == "cuda":
        return fits_gemm(weight)
    return fits_cpu_kernel(weight) and weight.dtype == torch.bfloat16 and has_nf4_kernel(weight.device)


def fits_cpu_kernel(weight: Tensor) -> bool:
    """Returns whether a weight consists of whole blocks of the 4-bit kernel for CPUs."""
    return weight.shape[0] % KERNEL_ROWS == 0 and weight.shape[1] % KERNEL_COLUMNS == 0


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
        weight: bfloat16 `[outputs, inputs]`; `fits_nf4`.
        bias: `[outputs]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = empty((self.out_features, self.in_features // 2), torch.uint8, weight.device)
        self._scales = empty((self.in_features // BLOCK_SIZE, self.out_features), torch.bfloat16, weight.device)
        row = torch.zeros(1, self.in_features, dtype=torch.bfloat16)
        for rows in _blocks_of_rows(weight):
            layer = _four_bit_linear(weight[rows], None, "nf4")
            # The layer converts its weights to the kernel's layout when it runs first. Each 32 rows are a block of it.
            layer(row)
            state = layer.weight.quant_state
            assert state.packing_format_for_cpu, "bitsandbytes has a kernel for this weight"
            self._weight[rows], self._scales[:, rows] = layer.weight.data, state.absmax
        self._bias = None if bias is None else bias.to(torch.bfloat16)
        self._code, self._shape = state.code, [self.out_features, self.in_features]
        self._operator: Any = torch.ops.bitsandbytes.gemv_4bit.default
        self.num_bytes = self._weight.nbytes + self._scales.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self._operator(inputs, self._weight, self._shape, self._scales, self._code, BLOCK_SIZE)
        return output if self._bias is None else output.add_(self._bias)


def _blocks_of_rows(weight: Tensor) -> Iterator[slice]:
    """Yields rows that are converted at once: multiples of 64, so that no scale and no kernel block is cut."""
    num_rows = max(MAX_CONVERTED // weight.shape[1] // 64, 1) * 64
    for first in range(0, weight.shape[0], num_rows):
        yield slice(first, first + num_rows)


def _four_bit_linear(weight: Tensor, bias: Tensor | None, quant: str) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    kernels: Any = bitsandbytes.functional
    num_outputs, num_inputs = weight.shape
    packed = empty(((weight.numel() + 1) // 2, 1), torch.uint8, weight.device)
    scales = empty((-(-weight.numel() // BLOCK_SIZE),), torch.float32, weight.device)
    for rows in _blocks_of_rows(weight):
        part, state = kernels.quantize_4bit(weight[rows], blocksize=BLOCK_SIZE, quant_type=quant)
        first = rows.start * num_inputs
        packed[first // 2 : first // 2 + part.shape[0]] = part
        scales[first // BLOCK_SIZE : first // BLOCK_SIZE + state.absmax.shape[0]] = state.absmax
    state.absmax, state.shape = scales, weight.shape
    layer = layers.Linear4bit(
        num_inputs, num_outputs, bias=bias is not None, compute_dtype=weight.dtype, quant_type=quant, device="meta"
    )
    layer.weight = layers.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK_SIZE,
        compress_statistics=False,
        quant_type=quant,
        module=layer,
        bnb_quantized=True,
    )
    layer.quant_state = state
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def _int8_linear(weight: Tensor, bias: Tensor | None) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    kernels: Any = bitsandbytes.functional
    num_outputs, num_inputs = weight.shape
    packed = empty((num_outputs, num_inputs), torch.int8, weight.device)
    scales = empty((num_outputs,), torch.float32, weight.device)
    for rows in _blocks_of_rows(weight):
        packed[rows], scales[rows], _ = kernels.int8_vectorwise_quant(weight[rows].to(torch.float16))
    # With the library's threshold of 6.0, outlier columns are chosen over all rows at once: a later draft token then
    # changes the logits of an earlier one (by up to 0.13), and the output is no longer the target's.
    layer = layers.Linear8bitLt(
        num_inputs, num_outputs, bias=bias is not None, has_fp16_weights=False, threshold=0.0, device="meta"
    )
    layer.weight = layers.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()
