"""Packs the linear layers of a model for a CPU's kernels: see `specgen.models.formats`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor, nn

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.float_linear import BFloat16Linear, NativeFloat16Linear
from specgen.models.float_weight import FloatWeight, fits_float_kernel
from specgen.models.formats import (
    Float16Linear,
    Float32Embedding,
    Int8Linear,
    NativeInt8Linear,
    Nf4Linear,
    PackedLinear,
    fits_float16,
    without_deprecation_warning,
)
from specgen.models.gemm_4bit import GemmNf4Linear
from specgen.models.int8_weight import Int8Weight, fits_int8_kernel
from specgen.models.kernels import float_kernels, int8_kernels, nf4_kernels
from specgen.models.nf4_weight import Nf4Weight, fits_nf4_kernel
from specgen.models.quantized import KernelNf4Linear, fits_nf4, nf4_linear
from specgen.models.weight_memory import empty

PackedKind = type[BFloat16Linear] | type[Float16Linear] | type[Int8Linear] | type[Nf4Linear]
PackedFormat = Literal["bfloat16", "float16", "int8", "nf4"]
FLOAT_KINDS: dict[PackedFormat, PackedKind] = {"bfloat16": BFloat16Linear, "float16": Float16Linear}
"""Classes of layers with 16-bit weights by the name of their type."""
PACKED_KINDS: dict[PackedFormat, PackedKind] = {**FLOAT_KINDS, "int8": Int8Linear, "nf4": Nf4Linear}
"""Classes of packed layers by the name of their format."""
_FLOAT_TYPES: dict[PackedKind, torch.dtype] = {BFloat16Linear: torch.bfloat16, Float16Linear: torch.float16}


def may_run_kernels() -> bool:
    """Returns whether this CPU has what our kernels need; nothing is compiled, so the system may still forbid it."""
    return cpu_vectors() is not None


def has_nf4_matmul() -> bool:
    """Returns whether this CPU runs `Nf4Linear`; compiles its kernels."""
    return nf4_kernels() is not None


def has_float_matmul(dtype: torch.dtype) -> bool:
    """Returns whether this CPU runs our kernels of weights in bfloat16 or float16; compiles them."""
    return float_kernels(dtype) is not None


def pack_model(model: Any, kind: PackedKind) -> int:
    """Replaces a model's linear layers, in place; everything else computes in float32.

    A layer with a weight out of float16's range stays, in float32.

    Args:
        model: A transformers model on the CPU, weights as stored.
        kind: Replaces `torch.nn.Linear`.

    Returns:
        Bytes of the packed weights.
    """
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    num_bytes = pack_layers(model, kind, head)
    for parameter in model.parameters():
        if parameter is not inputs.weight:
            parameter.data = parameter.data.float()
    if type(inputs) is nn.Embedding:
        inputs.__class__ = Float32Embedding
        # The last tensor that maps the file's pages: copying it releases them.
        inputs.weight.data = inputs.weight.data.clone()
    else:
        inputs.weight.data = inputs.weight.data.float()
    return num_bytes


def pack_layers(module: nn.Module, kind: PackedKind, head: nn.Module | None = None) -> int:
    """Replaces a module's linear layers, in place.

    Args:
        kind: Replaces `torch.nn.Linear`.
        head: The layer that computes the logits. In nf4, it is packed in int8: its rounding changes the text most.

    Returns:
        Bytes of the packed weights.
    """
    jobs = [
        (parent, name, Int8Linear if layer is head and kind is Nf4Linear else kind)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear
    ]
    compile_ahead(kind)  # once, not by each thread
    # Packing a layer is one long loop without the interpreter lock. The longest jobs go first, so that none of them
    # runs alone at the end.
    jobs.sort(key=lambda job: -getattr(job[0], job[1]).weight.numel())
    with without_deprecation_warning(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(lambda job: _replace(*job), jobs))


def compile_ahead(kind: PackedKind) -> None:
    """Compiles the kernels of a format, and of the heads of its targets."""
    if (dtype := _FLOAT_TYPES.get(kind)) is not None:
        float_kernels(dtype)
    else:
        int8_kernels()
    if kind is Nf4Linear:
        nf4_kernels()


def holds(kind: PackedKind, weight: Tensor) -> bool:
    """Returns whether a format has all values of a weight, and can compute it."""
    if kind is BFloat16Linear:
        return weight.dtype == torch.bfloat16 and fits_float_kernel(weight)
    return kind is not Float16Linear or weight.dtype == torch.float16 or fits_float16(weight)


def packed_linear(weight: Tensor, kind: PackedKind, bias: Tensor | None = None) -> PackedLinear:
    """Returns a layer with a packed copy of a weight `[outputs, inputs]`, on the fastest kernel for it.

    A weight whose inputs are no whole blocks of 4-bit values is packed in int8; one whose sizes our kernel of bfloat16
    can't compute, in float16. A weight is not copied if it is stored as our kernels read it.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach().float()
    if (dtype := _FLOAT_TYPES.get(kind)) is not None:
        stored = weight if weight.dtype == dtype else empty(weight.shape, dtype, weight.device).copy_(weight)
        return _float_linear(stored, bias)
    if kind is Nf4Linear and fits_nf4_kernel(weight) and (kernels := nf4_kernels()) is not None:
        return Nf4Linear(Nf4Weight(weight, bias, kernels))
    if fits_int8_kernel(weight) and (kernels := int8_kernels(len(weight))) is not None:
        return NativeInt8Linear(Int8Weight(weight, bias, kernels))
    with without_deprecation_warning():
        return Int8Linear(weight, bias)


def _float_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    kernels = float_kernels(weight.dtype, len(weight)) if fits_float_kernel(weight) else None
    if kernels is None:
        return Float16Linear(weight, bias)
    packed = FloatWeight(weight, bias, kernels)
    return BFloat16Linear(packed) if weight.dtype == torch.bfloat16 else NativeFloat16Linear(packed)


def has_fast_nf4(weight: Tensor) -> bool:
    """Returns whether a weight can be quantized to nf4, and is faster then on this machine."""
    return (fits_nf4_kernel(weight) and has_nf4_matmul()) or fits_nf4(weight)


def fast_nf4_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Returns a layer with 4-bit weights, on our own kernel if this machine runs it, else on bitsandbytes'."""
    if fits_nf4_kernel(weight) and has_nf4_matmul():
        return packed_linear(weight, Nf4Linear, bias)
    return nf4_linear(weight, bias)


def _replace(parent: nn.Module, name: str, kind: PackedKind) -> int:
    layer: nn.Linear = getattr(parent, name)
    weight = layer.weight.detach()
    if not holds(kind, weight):
        return 0
    if weight.dtype == _FLOAT_TYPES.get(kind):
        # It maps the file's pages.
        weight = empty(weight.shape, weight.dtype, weight.device).copy_(weight)
    packed = packed_linear(weight, kind, layer.bias)
    setattr(parent, name, packed)
    return packed.num_bytes


def is_quantized(module: nn.Module) -> bool:
    """Returns whether a module has layers in a format of bitsandbytes, or in nf4."""
    kinds = {type(part).__module__.partition(".")[0] for part in module.modules()}
    return "bitsandbytes" in kinds or any(
        isinstance(part, KernelNf4Linear | GemmNf4Linear | Nf4Linear) for part in module.modules()
    )
