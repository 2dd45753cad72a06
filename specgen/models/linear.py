"""Matrix products of a loaded model, called without what surrounds them. Layers in, functions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NUM_TIMED = 3
WORTHWHILE = 0.95
"""Share of the usual product's time from which on another one is worth its rounding."""
MatMul = Callable[[Tensor], Tensor]
"""`[n, inputs]` to `[n, outputs]`."""


def matmul_of(layer: Any) -> MatMul:
    """What a linear layer computes, bit for bit, as a function."""
    if type(layer) is torch.nn.Linear:
        return dense(layer.weight, layer.bias)
    if _is_packed(layer):
        return _four_bit(layer.weight.data, layer.weight.quant_state.absmax, layer)
    module: MatMul = layer
    return module


def fused_matmul(layers: Sequence[Any]) -> MatMul:
    """Products of the same inputs as one, their outputs side by side. The layers keep working, on the same memory.

    Args:
        layers: Linear layers of one kind. Kinds that can't be joined run one after the other.
    """
    if all(type(layer) is torch.nn.Linear for layer in layers) and len({layer.bias is None for layer in layers}) == 1:
        weight = _joined([layer.weight for layer in layers])
        return dense(weight, None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]))
    if all(_is_packed(layer) for layer in layers) and len({layer.bias is None for layer in layers}) == 1:
        # Packed rows lie in blocks of 32, the scales of a row in a column.
        weight = _joined([layer.weight for layer in layers])
        scales = torch.cat([layer.weight.quant_state.absmax for layer in layers], dim=1).contiguous()
        return _four_bit(weight, scales, *layers)
    joint = getattr(layers[0], "joint", None)
    if joint is not None and all(getattr(layer, "joint", None) is joint for layer in layers):
        module: MatMul = joint  # the loader has joined them: see specgen.models.formats
        return module
    products = [matmul_of(layer) for layer in layers]
    return lambda inputs: torch.cat([one(inputs) for one in products], dim=-1)


def has_nf4_kernel(device: torch.device) -> bool:
    """Whether 4-bit products of bfloat16 are fast here: bitsandbytes has a kernel for CPUs with AVX512-BF16."""
    if device.type != "cpu":
        return False
    from bitsandbytes import functional as kernels

    probe: Any = kernels.has_avx512bf16
    return bool(probe())


def nf4_copy(weight: Tensor) -> MatMul:
    """A 4-bit copy (nf4) of a dense weight `[outputs, inputs]`: several times faster, and not the same numbers.

    For drafts only: what a draft computes decides its speed and its acceptance, never the text.
    """
    return matmul_of(_packed_layer(weight, None))


def fits_nf4(weight: Tensor) -> bool:
    """Whether a weight can be packed, and gains by it here."""
    fits = weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0  # the kernel's blocks
    return fits and weight.dtype == torch.bfloat16 and has_nf4_kernel(weight.device)


def pack_layers_nf4(module: torch.nn.Module) -> None:
    """Put 4-bit layers in the place of a module's linear ones. For drafts only, as `nf4_copy`."""
    for name, child in module.named_children():
        if type(child) is not torch.nn.Linear:
            pack_layers_nf4(child)
        elif fits_nf4(child.weight):
            setattr(module, name, _packed_layer(child.weight, child.bias))


def _packed_layer(weight: Tensor, bias: Tensor | None) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    num_outputs, num_inputs = weight.shape
    has_bias = bias is not None
    layer = layers.Linear4bit(num_inputs, num_outputs, bias=has_bias, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = layers.Params4bit(weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return layer.to(weight.device).eval()


def faster_of(usual: MatMul, other: MatMul, row: Tensor, clock: Callable[[], float] = perf_counter) -> MatMul:
    """The faster of two products by a few passes in turn; `usual` unless the other one is clearly faster.

    Args:
        usual: Kept in doubt.
        other: The other one.
        row: `[1, inputs]`.
        clock: Seconds.
    """
    least = [float("inf"), float("inf")]
    for sample in range(NUM_TIMED + 1):  # the first one warms up
        for index, one in enumerate((usual, other)):
            started = clock()
            one(row)
            if sample:
                least[index] = min(least[index], clock() - started)
    return other if least[1] < WORTHWHILE * least[0] else usual


def dense(weight: Tensor, bias: Tensor | None = None) -> MatMul:
    """The product with a weight `[outputs, inputs]`."""
    return lambda inputs: functional.linear(inputs, weight, bias)


def _is_packed(layer: Any) -> bool:
    """Whether a layer is a 4-bit one in the layout of bitsandbytes' CPU kernel, which it takes on at its first use."""
    # Asked before the layer is used: without the kernel that pass would unpack all its weights for nothing.
    if type(layer).__name__ != "Linear4bit" or not has_nf4_kernel(layer.weight.device):
        return False
    if layer.compute_dtype != torch.bfloat16:
        return False
    layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def _joined(weights: Sequence[Any]) -> Tensor:
    """One tensor with the rows of all; the weights become views of it, so that nothing is held twice."""
    with torch.inference_mode(False):  # whoever calls: the layers must go on working outside of it
        whole = torch.cat([weight.data for weight in weights])
    first = 0
    for weight in weights:
        num_rows = weight.shape[0]
        weight.data = whole[first : first + num_rows]
        first += num_rows
    return whole


def _four_bit(weight: Tensor, scales: Tensor, *layers: Any) -> MatMul:
    """The product of packed weights: the operator that the layer ends up in, less some 40 microseconds of Python."""
    state = layers[0].weight.quant_state
    shape = [sum(layer.out_features for layer in layers), layers[0].in_features]
    operator: Any = torch.ops.bitsandbytes.gemv_4bit.default
    code, block = state.code, state.blocksize
    if layers[0].bias is None:
        return lambda inputs: operator(inputs, weight, shape, scales, code, block)
    bias = torch.cat([layer.bias for layer in layers]).to(torch.bfloat16)
    return lambda inputs: operator(inputs, weight, shape, scales, code, block).add_(bias)
