"""Finds what a layer consists of, if each part of it is a kernel of our own for CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from specgen.models.decoder_spec import Activation
from specgen.models.formats import NativeLinear
from specgen.models.forward_pass import Norm
from specgen.models.native_weight import NO_PROLOGUE, NativeWeight, Prologue
from specgen.models.vector_code import GELU, LANES, NORM, SILU

if TYPE_CHECKING:
    from specgen.models.decoder import Layer


@dataclass(frozen=True, slots=True)
class Product:
    """A product.

    Args:
        weight: The weight.
        prologue: What rows go through before it.
    """

    weight: NativeWeight
    prologue: Prologue = NO_PROLOGUE


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The parts of a layer.

    Args:
        qkv: Computes queries, keys and values, outputs side by side.
        output: The output projection.
        gate_up: Gate and up projections, outputs side by side.
        down: The activation and the down projection.
        qk_norms: Norms of queries and keys.
        attention_out: Norm of what attention adds.
        mlp_out: Norm of what the feed-forward adds.
    """

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    qk_norms: tuple[Prologue, Prologue] | None
    attention_out: Prologue | None
    mlp_out: Prologue | None

    @property
    def products(self) -> tuple[Product, Product, Product, Product]:
        """The products in their order."""
        return self.qkv, self.output, self.gate_up, self.down


def gate_prologue(activation: Activation) -> Prologue:
    """Returns an activated gate as our own kernels compute it."""
    return Prologue(SILU if activation == "silu" else GELU)


def norm_prologue(norm: Norm) -> Prologue | None:
    """Returns a norm as our own kernels compute it, or None if they don't have its type."""
    if norm.weight.dtype != torch.float32 or norm.weight.shape[0] % LANES:
        return None
    return Prologue(NORM, norm.weight.detach().contiguous(), norm.spec.norm_epsilon)


def parts_of_layer(layer: Layer) -> LayerParts | None:
    """Returns the parts of a layer, or None if one of them does not run on our own kernels."""
    attention, mlp = layer.attention, layer.mlp
    modules = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    weights = [module.native_weight for module in modules if isinstance(module, NativeLinear)]
    norms = (layer.attention_in, layer.attention_out, layer.mlp_in, layer.mlp_out, attention.q_norm, attention.k_norm)
    prologues = [None if norm is None else norm_prologue(norm) for norm in norms]
    has_others = any((norm is None) != (found is None) for norm, found in zip(norms, prologues, strict=True))
    if has_others or len(weights) < len(modules):
        return None
    qkv, output, gate_up, down = weights
    # A step reads all outputs of the step before it, so these products must not compute unused ones.
    if any(weight.num_computed != weight.shape[0] for weight in (output, gate_up, down)) or output.shape[0] % LANES:
        return None
    attention_in, attention_out, mlp_in, mlp_out, q_norm, k_norm = prologues
    return LayerParts(
        Product(qkv, attention_in or NO_PROLOGUE),
        Product(output),
        Product(gate_up, mlp_in or NO_PROLOGUE),
        Product(down, gate_prologue(attention.function.spec.activation)),
        None if q_norm is None or k_norm is None else (q_norm, k_norm),
        attention_out,
        mlp_out,
    )
