"""The decoder as modules: attention, feed-forward and layers, for inference, draft heads and training.

A `DecoderSpec` says what differs between families; there are no subclasses per family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.decoder_spec import DecoderSpec
from specgen.models.forward_pass import AttentionFunction, LayerFunction, Norm, function_of, gated_feed_forward

if TYPE_CHECKING:
    from specgen.models.layer_parts import LayerParts
    from specgen.models.stored_slots import KvSlots, Rotations


class Attention(nn.Module):
    """Weights of a layer's attention.

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
        norms = None if qk_norms is None else (function_of(qk_norms[0]), function_of(qk_norms[1]))
        rotary = spec.layers[index].rotary
        self.function = AttentionFunction(spec, index, rotary, function_of(qkv_proj), function_of(o_proj), norms)


class FeedForward(nn.Module):
    """Weights of a layer's gated feed-forward.

    Args:
        spec: The decoder.
        gate_up_proj: Gate and up projections, outputs side by side.
        down_proj: Down projection.
    """

    def __init__(self, spec: DecoderSpec, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.function = partial(gated_feed_forward, spec, function_of(gate_up_proj), function_of(down_proj))


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
        placed = (self.attention_in, self.attention_out, self.mlp_in, self.mlp_out)
        functions = [None if norm is None else function_of(norm) for norm in placed]
        self.function = LayerFunction(spec, attention.function, feed_forward.function, *functions)
        self.parts: LayerParts | None = None
        """Set by `fuse` where each part is a kernel of our own for CPUs."""

    def forward(self, hidden: Tensor, rotations: Rotations, slots: KvSlots) -> Tensor:
        """Turns inputs `[..., n, hidden]` into outputs of the same shape."""
        return self.function(hidden, rotations, slots)


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
            hidden = layer.function(hidden, rotations, slots)
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
                layer.attention.function.index = index
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
        return self.capped(self.head(features))

    def capped(self, logits: Tensor) -> Tensor:
        """Divides and caps what the head computed, as the spec says."""
        if self.spec.logits_divisor != 1.0:
            logits = logits / self.spec.logits_divisor
        cap = self.spec.logits_soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap
