"""The decoder as modules: norms, attention, feed-forward and layers, for inference, draft heads and training.

Every operation is applied in transformers' order, so that rounding in low precisions is the same. A `DecoderSpec` says
what differs between families; there are no subclasses per family.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.decoder_spec import DecoderSpec
from specgen.models.rotary import rotate

if TYPE_CHECKING:
    from specgen.models.kv_slots import KvSlots, Rotations


class Norm(nn.Module):
    """Root mean square norm.

    Args:
        weight: `[channels]` in the compute type; the spec's offset is added here.
        spec: The decoder.
    """

    def __init__(self, weight: Tensor, spec: DecoderSpec) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self._in_float32 = spec.scales_norm_in_float32
        if self._in_float32:
            weight = weight.float() + spec.norm_offset
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = spec.norm_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.is_cuda:
            return self.fused(hidden)
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        if self._in_float32:
            return (normed * self.weight).to(hidden.dtype)
        return self.weight * normed.to(hidden.dtype)

    def fused(self, hidden: Tensor) -> Tensor:
        """Computes the norm in one kernel instead of eight.

        It multiplies by the weight before it rounds to the compute type, so its last bit may differ from `forward`'s.
        """
        shape = (self.weight.shape[0],)
        if self.weight.dtype == hidden.dtype:
            return functional.rms_norm(hidden, shape, self.weight, self.epsilon)
        return functional.rms_norm(hidden.float(), shape, self.weight.float(), self.epsilon).to(hidden.dtype)


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
        self._norms_all_heads = spec.qk_norm == "all"
        self._num_heads, self._num_kv_heads, self._head_size = spec.num_heads, spec.num_kv_heads, spec.head_size

    def forward(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        projected: Tensor = self.qkv_proj(hidden)
        heads = projected.view(*hidden.shape[:-1], -1, self._head_size)
        num_rotated = self._num_heads + self._num_kv_heads
        rotated = heads[..., :num_rotated, :]
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = rotated[..., : self._num_heads, :], rotated[..., self._num_heads :, :]
            if self._norms_all_heads:
                normed = [self.q_norm(queries.flatten(-2)), self.k_norm(keys.flatten(-2))]
                rotated = torch.cat(normed, dim=-1).view(*hidden.shape[:-1], -1, self._head_size)
            else:
                rotated = torch.cat([self.q_norm(queries), self.k_norm(keys)], dim=-2)
        if self._rotary is not None:
            rotated = rotate(rotated, rotations[self._rotary])
        queries, keys = rotated[..., : self._num_heads, :], rotated[..., self._num_heads :, :]
        attended = slots.attend(self.index, queries, keys, heads[..., num_rotated:, :])
        output: Tensor = self.o_proj(attended)
        return output


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
        self._is_silu = spec.activation == "silu"

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        activated = functional.silu(gate) if self._is_silu else functional.gelu(gate, approximate="tanh")
        output: Tensor = self.down_proj(activated * up)
        return output


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
        self._residual_scale = spec.residual_scale

    def forward(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs `[..., n, hidden]` into outputs of the same shape."""
        added = self.attention(hidden if self.attention_in is None else self.attention_in(hidden), rotations, slots)
        hidden = self._add(hidden, added if self.attention_out is None else self.attention_out(added))
        added = self.mlp(hidden if self.mlp_in is None else self.mlp_in(hidden))
        return self._add(hidden, added if self.mlp_out is None else self.mlp_out(added))

    def _add(self, hidden: Tensor, added: Tensor) -> Tensor:
        return hidden + (added if self._residual_scale == 1.0 else added * self._residual_scale)


def trainable_copy(layer: Layer, index: int) -> Layer:
    """Copies a layer in float32, with gradients.

    Args:
        layer: Its matrix products are `torch.nn.Linear`.
        index: Of the copy, for the slots.
    """
    copied = copy.deepcopy(layer).float().requires_grad_()
    copied.attention.index = index
    return copied


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
            hidden = layer(hidden, rotations, slots)
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
