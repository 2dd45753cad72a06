"""The decoder as modules: norms, attention, feed-forward and layers, for inference, draft heads and training.

Every operation is applied in transformers' order, so that rounding in low precisions is the same. A `DecoderSpec` says
what differs between families; there are no subclasses per family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.decoder_spec import DecoderSpec
from specgen.models.rotary import rotate

if TYPE_CHECKING:
    from specgen.models.kv_slots import KvSlots, Rotations


def function_of(module: nn.Module) -> Callable[..., Tensor]:
    """Returns what a module computes, as a function on its parameters.

    Looking up submodules of each layer, and calling them through their hooks, takes 5 % of a pass of a 135M model. A
    deep copy of the function belongs to the copy of the module, and a conversion of the module in place changes it.
    """
    if type(module) is nn.Linear:
        return partial(functional.linear, weight=module.weight, bias=module.bias)
    if type(module) is Norm:
        return partial(normalize, module.spec, module.weight)
    function: Callable[..., Tensor] = module.forward
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


class Attention(nn.Module):
    """Attention of a layer. Keys and values are stored and attended to by the slots.

    Args:
        spec: The decoder.
        index: Index of the layer.
        qkv_proj: Projections of queries, keys and values, outputs side by side.
        o_proj: Output projection.
        qk_norms: Norms of queries and keys, if the spec has them.
    """

    def __init__(
        self, spec: DecoderSpec, index: int, qkv_proj: nn.Module, o_proj: nn.Module, qk_norms: tuple[Norm, Norm] | None
    ) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.q_norm: Norm | None = None if qk_norms is None else qk_norms[0]
        self.k_norm: Norm | None = None if qk_norms is None else qk_norms[1]
        self.index = index
        self._rotary = spec.layers[index].rotary
        self._project, self._output = function_of(qkv_proj), function_of(o_proj)
        self._spec = spec

    def forward(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        spec = self._spec
        num_heads, num_kv_heads = spec.num_heads, spec.num_kv_heads
        heads = self._project(hidden).view(*hidden.shape[:-1], -1, spec.head_size)
        rotated = heads.narrow(-2, 0, num_heads + num_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = rotated.narrow(-2, 0, num_heads), rotated.narrow(-2, num_heads, num_kv_heads)
            if spec.qk_norm == "all":
                normed = [self.q_norm(queries.flatten(-2)), self.k_norm(keys.flatten(-2))]
                rotated = torch.cat(normed, dim=-1).view(*hidden.shape[:-1], -1, spec.head_size)
            else:
                rotated = torch.cat([self.q_norm(queries), self.k_norm(keys)], dim=-2)
        rotated = rotated if self._rotary is None else rotate(rotated, rotations[self._rotary])
        queries, keys = rotated.narrow(-2, 0, num_heads), rotated.narrow(-2, num_heads, num_kv_heads)
        values = heads.narrow(-2, num_heads + num_kv_heads, num_kv_heads)
        return self._output(slots.attend(self.index, queries, keys, values))


class FeedForward(nn.Module):
    """Gated feed-forward.

    Args:
        spec: The decoder.
        gate_up_proj: Gate and up projections, outputs side by side.
        down_proj: Down projection.
    """

    def __init__(self, spec: DecoderSpec, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self._widen, self._narrow = function_of(gate_up_proj), function_of(down_proj)
        self._spec = spec

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self._widen(hidden).chunk(2, dim=-1)
        activated = (
            functional.silu(gate) if self._spec.activation == "silu" else functional.gelu(gate, approximate="tanh")
        )
        return self._narrow(activated * up)


class Layer(nn.Module):
    """A decoder layer.

    Args:
        spec: The decoder.
        attention: Its attention.
        feed_forward: Its feed-forward.
        norms: By name: `attention_in`, `attention_out`, `mlp_in`, `mlp_out`; those that the spec's placement has.
    """

    def __init__(
        self, spec: DecoderSpec, attention: Attention, feed_forward: FeedForward, norms: dict[str, Norm]
    ) -> None:
        super().__init__()
        self.attention, self.mlp = attention, feed_forward
        self.attention_in, self.attention_out = norms.get("attention_in"), norms.get("attention_out")
        self.mlp_in, self.mlp_out = norms.get("mlp_in"), norms.get("mlp_out")
        self._spec = spec
        self._attend, self._feed_forward = function_of(attention), function_of(feed_forward)
        placed = (self.attention_in, self.attention_out, self.mlp_in, self.mlp_out)
        self._norms = [None if norm is None else function_of(norm) for norm in placed]

    def forward(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs `[..., n, hidden]` into outputs of the same shape."""
        scale = self._spec.residual_scale
        attention_in, attention_out, mlp_in, mlp_out = self._norms
        added = self._attend(hidden if attention_in is None else attention_in(hidden), rotations, slots)
        added = added if attention_out is None else attention_out(added)
        hidden = hidden + (added if scale == 1.0 else added * scale)
        added = self._feed_forward(hidden if mlp_in is None else mlp_in(hidden))
        added = added if mlp_out is None else mlp_out(added)
        return hidden + (added if scale == 1.0 else added * scale)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive layers of a decoder, all on one device. Each segment has its own slots.

    Args:
        spec: The decoder with these layers only.
        layers: Their attention has the index in this segment.
        dtype: The compute type.
    """

    spec: DecoderSpec
    layers: Sequence[Layer]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where its layers are."""
        return next(self.layers[0].parameters()).device

    @property
    def like(self) -> Tensor:
        """Returns an empty tensor of the type and device it computes in."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def run(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs of its first layer `[..., n, hidden]` into outputs of its last."""
        for layer in self.layers:
            hidden = layer.forward(hidden, rotations, slots)
        return hidden


class Decoder(nn.Module):
    """A whole decoder, on one device until `split` divides it.

    Args:
        spec: What it computes.
        embedding: `[vocab, hidden]`, as stored; rows are converted when they are read.
        layers: Its layers.
        norm: The last norm; its type is the compute type.
        head: `[..., hidden]` to logits.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        embedding: Tensor,
        layers: list[Layer],
        norm: Norm,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Parameter(embedding, requires_grad=False)
        self.layers = layers
        self._registered = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.dtype = norm.dtype
        self.segments: tuple[Segment, ...] = (Segment(spec, layers, self.dtype),)
        """The embedding is on the first one's device, the last norm and the head on the last one's."""

    @property
    def device(self) -> torch.device:
        """Where its embedding is: ids are fed there."""
        return self.embedding.device

    @property
    def output_device(self) -> torch.device:
        """Where its last norm and its head are: logits are returned there."""
        return self.norm.weight.device

    def split(self, num_layers: Sequence[int]) -> None:
        """Divides the layers into segments of these lengths, whose tensors are on their devices already."""
        assert sum(num_layers) == len(self.layers), "every layer belongs to one segment"
        assert all(num_layers), "no segment is empty"
        segments = []
        first = 0
        for number in num_layers:
            last = first + number
            layers = self.layers[first:last]
            for index, layer in enumerate(layers):
                layer.attention.index = index
            segments.append(Segment(replace(self.spec, layers=self.spec.layers[first:last]), layers, self.dtype))
            first = last
        self.segments = tuple(segments)

    def embed(self, ids: Tensor) -> Tensor:
        """Turns ids `[..., n]` into the first layer's inputs `[..., n, hidden]`."""
        embedded = functional.embedding(ids, self.embedding).to(self.dtype)
        scale = self.spec.embedding_scale
        if scale == 1.0:
            return embedded
        return embedded * (torch.tensor(scale, dtype=self.dtype) if self.spec.rounds_embedding_scale else scale)

    def run_layers(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs of the first layer `[..., n, hidden]` into outputs of the last, for `norm`: on one device."""
        (segment,) = self.segments
        return segment.run(hidden, rotations, slots)

    def logits(self, features: Tensor) -> Tensor:
        """Turns inputs of the head `[..., hidden]` into logits `[..., vocab]`."""
        logits: Tensor = self.head(features)
        if self.spec.logits_divisor != 1.0:
            logits = logits / self.spec.logits_divisor
        cap = self.spec.logits_soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap
