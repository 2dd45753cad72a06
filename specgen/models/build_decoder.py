"""Builds a decoder's layers from named tensors, and names the tensors of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from specgen.models.decoder import Attention, FeedForward, Layer
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.forward_pass import Norm
from specgen.models.tensor_names import NORM_NAMES, Projection, layer_prefix, projections, tensor_shapes
from specgen.models.weight_memory import joined

Tensors = Callable[..., Tensor]
"""Tensors of the checkpoint by their names, as stored, joined along their first dimension."""
MakeLinear = Callable[[Tensor, Tensor | None], nn.Module]
"""A linear layer in some weight format, from weight `[outputs, inputs]` and bias `[outputs]`, as stored."""


def build_layer(spec: DecoderSpec, index: int, tensors: Tensors, linear: MakeLinear, dtype: torch.dtype) -> Layer:
    """Builds a layer.

    Args:
        spec: The decoder.
        index: Index of the layer.
        tensors: The checkpoint's.
        linear: Makes its matrix products.
        dtype: The type it computes in.
    """
    prefix = layer_prefix(index)
    made = {name: _product(projection, prefix, tensors, linear) for name, projection in projections(spec).items()}

    def norm(name: str) -> Norm:
        return Norm(tensors(f"{prefix}{name}.weight").to(dtype), spec)

    qk_norms = (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if spec.qk_norm is not None else None
    return Layer(
        spec,
        Attention(spec, index, made["qkv"], made["output"], qk_norms),
        FeedForward(spec, made["gate_up"], made["down"]),
        {own: norm(name) for own, name in NORM_NAMES[spec.norm_placement].items()},
    )


def _product(projection: Projection, prefix: str, tensors: Tensors, linear: MakeLinear) -> nn.Module:
    weight = tensors(*(f"{prefix}{name}.weight" for name in projection.names))
    bias = tensors(*(f"{prefix}{name}.bias" for name in projection.names)) if projection.has_bias else None
    return linear(weight, bias)


def in_memory(tensors: Mapping[str, Tensor]) -> Tensors:
    """Returns what `build_layer` reads tensors with that are loaded already."""
    return lambda *names: joined([tensors[name] for name in names])


def layer_tensors(spec: DecoderSpec, layer: Layer, index: int) -> dict[str, Tensor]:
    """Returns the tensors of a layer by their names in a checkpoint. It inverts `build_layer` for `torch.nn.Linear`."""
    prefix = layer_prefix(index)
    shapes = tensor_shapes(spec)
    products = {
        "qkv": layer.attention.qkv_proj,
        "output": layer.attention.o_proj,
        "gate_up": layer.mlp.gate_up_proj,
        "down": layer.mlp.down_proj,
    }
    found: dict[str, Tensor] = {}
    for name, projection in projections(spec).items():
        module = products[name]
        assert isinstance(module, nn.Linear), "quantized layers are not written"
        first = 0
        for tensor in projection.names:
            last = first + shapes[f"{prefix}{tensor}.weight"][0]
            found[f"{prefix}{tensor}.weight"] = module.weight[first:last]
            if projection.has_bias:
                found[f"{prefix}{tensor}.bias"] = module.bias[first:last]
            first = last
    norms: dict[str, Norm | None] = {name: getattr(layer, own) for own, name in NORM_NAMES[spec.norm_placement].items()}
    norms |= {"self_attn.q_norm": layer.attention.q_norm, "self_attn.k_norm": layer.attention.k_norm}
    for name, norm in norms.items():
        if norm is not None:
            found[f"{prefix}{name}.weight"] = norm.weight - spec.norm_offset if spec.norm_offset else norm.weight
    return found
