"""Matrix products of linear layers as plain functions, without the overhead of calling a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.core.machine import cpu_flags
from specgen.models.formats import OutputSlice

NUM_TIMED = 3
WORTHWHILE = 0.95
"""A faster product must take less than this share of the usual one's time to be worth its rounding."""
MatMul = Callable[[Tensor], Tensor]
"""`[n, inputs]` to `[n, outputs]`."""


def matmul_of(layer: Any) -> MatMul:
    """Returns a function that computes what a linear layer computes, bit for bit."""
    if type(layer) is torch.nn.Linear:
        return dense(layer.weight, layer.bias)
    if _has_nf4_kernel_layout(layer):
        return _nf4_matmul(layer.weight.data, layer.weight.quant_state.absmax, [layer])
    module: MatMul = layer
    return module


def fused_matmul(layers: Sequence[Any]) -> MatMul:
    """Returns one product for several layers with the same inputs; their outputs are concatenated.

    The layers keep working and share their memory with the product. Layers that can't be fused run one after the other.
    """
    has_equal_bias = len({layer.bias is None for layer in layers if hasattr(layer, "bias")}) == 1
    if has_equal_bias and all(type(layer) is torch.nn.Linear for layer in layers):
        weight = _fuse_weights([layer.weight for layer in layers])
        return dense(weight, None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]))
    if has_equal_bias and all(_has_nf4_kernel_layout(layer) for layer in layers):
        # The kernel's layout: rows in blocks of 32, the scales of a row in a column.
        weight = _fuse_weights([layer.weight for layer in layers])
        scales = torch.cat([layer.weight.quant_state.absmax for layer in layers], dim=1).contiguous()
        return _nf4_matmul(weight, scales, layers)
    slices = [layer for layer in layers if isinstance(layer, OutputSlice)]
    if len(slices) == len(layers) and all(part.fused is slices[0].fused for part in slices):
        return slices[0].fused
    products = [matmul_of(layer) for layer in layers]
    return lambda inputs: torch.cat([product(inputs) for product in products], dim=-1)


def dense(weight: Tensor, bias: Tensor | None = None) -> MatMul:
    """Returns the product with a weight `[outputs, inputs]`."""
    return lambda inputs: functional.linear(inputs, weight, bias)


def nf4_copy(weight: Tensor) -> MatMul:
    """Returns the product with a 4-bit copy (nf4) of a dense weight `[outputs, inputs]`: several times faster.

    For drafts only, because it rounds: a draft's numbers decide its speed and its acceptance, never the text.
    """
    return matmul_of(_nf4_layer(weight, None))


def fits_nf4(weight: Tensor) -> bool:
    """Returns whether a weight can be packed to 4 bits, and is faster then on this machine."""
    fits = weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0  # the kernel's blocks
    return fits and weight.dtype == torch.bfloat16 and has_nf4_kernel(weight.device)


def has_nf4_kernel(device: torch.device) -> bool:
    """Returns whether 4-bit products of bfloat16 are fast: bitsandbytes has a kernel for CPUs with AVX512-BF16."""
    if device.type != "cpu" or "avx512_bf16" not in cpu_flags():
        return False
    from bitsandbytes import functional as kernels

    has_kernel: Any = kernels.has_avx512bf16
    return bool(has_kernel())


def pack_layers_nf4(module: torch.nn.Module) -> None:
    """Replaces a module's linear layers by 4-bit ones. For drafts only, as `nf4_copy`."""
    for name, child in module.named_children():
        if type(child) is not torch.nn.Linear:
            pack_layers_nf4(child)
        elif fits_nf4(child.weight):
            setattr(module, name, _nf4_layer(child.weight, child.bias))


def faster_of(usual: MatMul, other: MatMul, row: Tensor, clock: Callable[[], float] = perf_counter) -> MatMul:
    """Returns the faster of two products, measured in turn; `usual` unless the other one is clearly faster.

    Args:
        usual: Returned in doubt.
        other: The other one.
        row: `[1, inputs]`.
        clock: Returns seconds.
    """
    least = [float("inf"), float("inf")]
    for sample in range(NUM_TIMED + 1):  # the first one warms up
        for index, product in enumerate((usual, other)):
            started = clock()
            product(row)
            if sample:
                least[index] = min(least[index], clock() - started)
    return other if least[1] < WORTHWHILE * least[0] else usual


def _nf4_layer(weight: Tensor, bias: Tensor | None) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    num_outputs, num_inputs = weight.shape
    has_bias = bias is not None
    layer = layers.Linear4bit(num_inputs, num_outputs, bias=has_bias, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = layers.Params4bit(weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return layer.to(weight.device).eval()


def _has_nf4_kernel_layout(layer: Any) -> bool:
    """Returns whether a layer is a 4-bit one in the layout of bitsandbytes' CPU kernel; runs it once to convert it."""
    # Checked before the layer runs: without the kernel, the run would unpack all its weights in vain.
    if type(layer).__name__ != "Linear4bit" or not has_nf4_kernel(layer.weight.device):
        return False
    if layer.compute_dtype != torch.bfloat16:
        return False
    layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def _fuse_weights(weights: Sequence[Any]) -> Tensor:
    """Returns one tensor with the rows of all weights; the weights become views of it, so memory is used once."""
    with torch.inference_mode(False):  # the layers must keep working outside of inference mode
        fused = torch.cat([weight.data for weight in weights])
    first = 0
    for weight in weights:
        num_rows = weight.shape[0]
        weight.data = fused[first : first + num_rows]
        first += num_rows
    return fused


def _nf4_matmul(weight: Tensor, scales: Tensor, layers: Sequence[Any]) -> MatMul:
    """Returns the product of 4-bit weights: the layer's own operator, without some 40 microseconds of Python."""
    state = layers[0].weight.quant_state
    shape = [sum(layer.out_features for layer in layers), layers[0].in_features]
    operator: Any = torch.ops.bitsandbytes.gemv_4bit.default
    code, block = state.code, state.blocksize
    if layers[0].bias is None:
        return lambda inputs: operator(inputs, weight, shape, scales, code, block)
    bias = torch.cat([layer.bias for layer in layers]).to(torch.bfloat16)
    return lambda inputs: operator(inputs, weight, shape, scales, code, block).add_(bias)
