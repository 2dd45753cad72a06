"""Computes the forward pass of a decoder's layers by plain objects, whose weights belong to modules.

Reading an attribute of a module and calling it through its hooks is slow: for all layers it took 6 % of a pass of a
135M model. Every operation is applied in transformers' order, so that rounding in low precisions is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.decoder_spec import Activation, DecoderSpec, RotarySpec

if TYPE_CHECKING:
    from specgen.models.stored_slots import KvSlots, Rotations

Function = Callable[[Tensor], Tensor]


def function_of(module: nn.Module) -> Function:
    """Returns what a module computes, as a function on its parameters.

    A deep copy of the function belongs to the copy of the module, and a conversion of the module in place changes it.
    """
    if type(module) is nn.Linear:
        return partial(functional.linear, weight=module.weight, bias=module.bias)
    if type(module) is Norm:
        return partial(normalize, module.spec, module.weight)
    function: Function = module.forward
    return function


def normalize(spec: DecoderSpec, weight: Tensor, hidden: Tensor) -> Tensor:
    """Computes a root mean square norm, see `Norm`."""
    if hidden.is_cuda:
        return fused_norm(spec, weight, hidden)
    # Without its weight, `rms_norm` rounds as transformers' own lines do, in one call instead of seven.
    if spec.scales_norm_in_float32:
        return (torch.rms_norm(hidden.float(), weight.shape, eps=spec.norm_epsilon) * weight).to(hidden.dtype)
    return weight * torch.rms_norm(hidden, weight.shape, eps=spec.norm_epsilon)


def fused_norm(spec: DecoderSpec, weight: Tensor, hidden: Tensor) -> Tensor:
    """Computes the norm in one kernel instead of eight; it rounds once only, so its last bit may be another."""
    if weight.dtype == hidden.dtype:
        return functional.rms_norm(hidden, weight.shape, weight, spec.norm_epsilon)
    return functional.rms_norm(hidden.float(), weight.shape, weight.float(), spec.norm_epsilon).to(hidden.dtype)


class Norm(nn.Module):
    """Root mean square norm.

    Args:
        weight: `[channels]` in the compute type; the spec's offset is added here.
        spec: The decoder.
    """

    def __init__(self, weight: Tensor, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = weight.dtype
        if spec.scales_norm_in_float32:
            weight = weight.float() + spec.norm_offset
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return normalize(self.spec, self.weight, hidden)


@dataclass(slots=True)
class AttentionFunction:
    """Attention of a layer. Keys and values are stored and attended to by the slots.

    Args:
        spec: The decoder.
        index: Index of the layer.
        rotary: Its rotary embedding, if it has one.
        project: Computes queries, keys and values, outputs side by side.
        output: The output projection.
        qk_norms: Norms of queries and keys, if the spec has them.
    """

    spec: DecoderSpec
    index: int
    rotary: RotarySpec | None
    project: Function
    output: Function
    qk_norms: tuple[Function, Function] | None

    def __call__(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        spec = self.spec
        num_heads, num_kv_heads = spec.num_heads, spec.num_kv_heads
        heads = self.project(hidden).view(*hidden.shape[:-1], -1, spec.head_size)
        rotated = heads.narrow(-2, 0, num_heads + num_kv_heads)
        if self.qk_norms is not None:
            q_norm, k_norm = self.qk_norms
            queries, keys = rotated.narrow(-2, 0, num_heads), rotated.narrow(-2, num_heads, num_kv_heads)
            if spec.qk_norm == "all":
                normed = [q_norm(queries.flatten(-2)), k_norm(keys.flatten(-2))]
                rotated = torch.cat(normed, dim=-1).view(*hidden.shape[:-1], -1, spec.head_size)
            else:
                rotated = torch.cat([q_norm(queries), k_norm(keys)], dim=-2)
        table = None if self.rotary is None else rotations[self.rotary]
        values = heads.narrow(-2, num_heads + num_kv_heads, num_kv_heads)
        return self.output(slots.rotate_and_attend(self.index, rotated, values, table))


def gated_feed_forward(spec: DecoderSpec, widen: Function, narrow: Function, hidden: Tensor) -> Tensor:
    """Computes a gated feed-forward.

    Args:
        spec: The decoder.
        widen: Gate and up projections, outputs side by side.
        narrow: Down projection.
        hidden: `[..., n, hidden]`.
    """
    return narrow(gated(spec.activation, widen(hidden)))


def gated(activation: Activation, outputs: Tensor) -> Tensor:
    """Turns gates and ups, side by side `[..., 2 n]`, into the activated gates times the ups, `[..., n]`."""
    gate, up = outputs.chunk(2, dim=-1)
    return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up


@dataclass(slots=True)
class LayerFunction:
    """A decoder layer. Its norms are those that the spec's placement has.

    Args:
        spec: The decoder.
        attend: Its attention.
        feed_forward: Its feed-forward.
    """

    spec: DecoderSpec
    attend: AttentionFunction
    feed_forward: Function
    attention_in: Function | None
    attention_out: Function | None
    mlp_in: Function | None
    mlp_out: Function | None

    def __call__(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs `[..., n, hidden]` into outputs of the same shape."""
        scale = self.spec.residual_scale
        added = self.attend(hidden if self.attention_in is None else self.attention_in(hidden), rotations, slots)
        added = added if self.attention_out is None else self.attention_out(added)
        hidden = hidden + (added if scale == 1.0 else added * scale)
        added = self.feed_forward(hidden if self.mlp_in is None else self.mlp_in(hidden))
        added = added if self.mlp_out is None else self.mlp_out(added)
        return hidden + (added if scale == 1.0 else added * scale)
