"""Decoder layers of Llama-like models on a preallocated cache: rows of hidden states in, rows out. Knows no tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.linear import fused_matmul, matmul_of

FIRST_CAPACITY = 512
"""Positions of a new cache; it doubles when it is full."""


class LayerStack:
    """Layers for one text, and their cache.

    Args:
        layers: transformers' decoder layers, of one of `specgen.models.decoder.ARCHITECTURES`.
        rotary: Their rotation.
        config: Their config.
        like: A tensor of the type and device they compute in.
    """

    def __init__(self, layers: Any, rotary: Any, config: Any, like: Tensor) -> None:
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._rotary = rotary
        self._like = like[:1, :1]
        self._layers = [Layer(one, config.num_attention_heads, self._num_kv_heads, self._head_size) for one in layers]
        self.release()

    def release(self) -> None:
        """Give the cache back; the next `run` begins at position 0."""
        self._capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._turns: tuple[Tensor, Tensor] | None = None

    def run(self, hidden: Tensor, first: int) -> Tensor:
        """Hidden states `[n, hidden]` of positions `first` on through all layers; what lay behind `first` is lost."""
        num_new = hidden.shape[0]
        last = first + num_new
        self._reserve(first, last)
        assert self._turns is not None
        turn = self._turns[0][first:last], self._turns[1][first:last]
        mask = None
        if first and num_new > 1:
            positions = torch.arange(last, device=hidden.device)
            mask = positions <= positions[first:, None]
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            hidden = layer(hidden, turn, keys, values, first, mask)
        return hidden

    def _reserve(self, held: int, length: int) -> None:
        """Make room for `length` positions."""
        if length > self._capacity:
            self._grow(held, max(FIRST_CAPACITY, 2 * self._capacity, length))

    def _grow(self, held: int, capacity: int) -> None:
        """Move to a larger cache layer by layer, so that the old and the new one are never both whole.

        A failure half way costs nothing that was held: no tensor is smaller than the capacity, which is told last.
        """
        like = self._like
        shape = (self._num_kv_heads, capacity, self._head_size)
        if not self._keys:
            self._keys = [torch.empty(0, 0, 0)] * len(self._layers)
            self._values = list(self._keys)
        for tensors in (self._keys, self._values):
            for index in range(len(self._layers)):
                room = torch.zeros(shape, dtype=like.dtype, device=like.device)
                if held:
                    room[:, :held] = tensors[index][:, :held]
                tensors[index] = room
        cos, sin = self._rotary(like, torch.arange(capacity, device=like.device)[None])
        # Negated once here, so that turning takes a roll and no pieces: x1 cos - x2 sin, x2 cos + x1 sin.
        sin = torch.cat([-sin[..., : self._head_size // 2], sin[..., self._head_size // 2 :]], dim=-1)
        self._turns = cos[0][:, None], sin[0][:, None]
        self._capacity = capacity


class Norm:
    """Root mean square norm, in transformers' order of operations: the scale is applied after rounding."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.epsilon: float = module.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(self.epsilon))
        return self.weight * (wide * scale).to(hidden.dtype)


class Layer:
    """Attention and feed-forward of one layer, over its own part of the cache."""

    def __init__(self, module: Any, num_heads: int, num_kv_heads: int, head_size: int) -> None:
        attention, forward = module.self_attn, module.mlp
        self.norm_in, self.norm_out = Norm(module.input_layernorm), Norm(module.post_attention_layernorm)
        self.project = fused_matmul([attention.q_proj, attention.k_proj, attention.v_proj])
        self.collect = matmul_of(attention.o_proj)
        self.widen = fused_matmul([forward.gate_proj, forward.up_proj])
        self.narrow = matmul_of(forward.down_proj)
        self.norms = None
        if hasattr(attention, "q_norm"):
            self.norms = Norm(attention.q_norm), Norm(attention.k_norm)
        self.scale: float = attention.scaling
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size

    def __call__(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, first: int, mask: Tensor | None
    ) -> Tensor:
        """`[n, hidden]` to the same; writes keys and values `[heads, capacity, head size]` from `first` on."""
        num_new, num_heads = hidden.shape[0], self.num_heads
        last = first + num_new
        heads = self.project(self.norm_in(hidden)).view(num_new, -1, self.head_size)
        turned = heads[:, : num_heads + self.num_kv_heads]
        if self.norms is not None:
            turned = torch.cat([self.norms[0](turned[:, :num_heads]), self.norms[1](turned[:, num_heads:])], dim=1)
        turned = turned * turn[0] + turned.roll(self.head_size // 2, -1) * turn[1]
        keys[:, first:last] = turned[:, num_heads:].transpose(0, 1)
        values[:, first:last] = heads[:, num_heads + self.num_kv_heads :].transpose(0, 1)
        seen = functional.scaled_dot_product_attention(
            turned[:, :num_heads].transpose(0, 1)[None],
            keys[None, :, :last],
            values[None, :, :last],
            attn_mask=mask,
            is_causal=mask is None and num_new > 1,
            scale=self.scale,
            enable_gqa=num_heads > self.num_kv_heads,
        )
        hidden = hidden + self.collect(seen[0].transpose(0, 1).reshape(num_new, -1))
        gate, up = self.widen(self.norm_out(hidden)).chunk(2, dim=-1)
        return hidden + self.narrow(functional.silu(gate) * up)
