"""Decoder layers of Llama-like models, on a preallocated KV cache: hidden states to hidden states, for one text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.linear import fused_matmul, matmul_of

FIRST_CAPACITY = 512
"""Positions of a new cache; the capacity doubles when the cache is full."""


class LayerStack:
    """Decoder layers and their KV cache.

    Args:
        layers: transformers' decoder layers, of one of `specgen.models.decoder.ARCHITECTURES`.
        rotary: Their rotary embedding.
        config: Their config.
        dtype: The type they compute in.
        device: Where they run.
    """

    def __init__(self, layers: Any, rotary: Any, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._rotary = rotary
        self._dtype, self._device = dtype, device
        heads = config.num_attention_heads, self._num_kv_heads, self._head_size
        self._layers = [DecoderLayer(layer, *heads) for layer in layers]
        self.release()

    def release(self) -> None:
        """Frees the cache; the next `run` starts at position 0."""
        self._capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rotations: tuple[Tensor, Tensor] | None = None

    def run(self, hidden: Tensor, first: int) -> Tensor:
        """Runs all layers on hidden states `[n, hidden]` of positions `first` on; overwrites later cache entries."""
        num_new = hidden.shape[0]
        last = first + num_new
        if last > self._capacity:
            self._grow(first, max(FIRST_CAPACITY, 2 * self._capacity, last))
        assert self._rotations is not None
        rotary = self._rotations[0][first:last], self._rotations[1][first:last]
        mask = None
        if first and num_new > 1:
            positions = torch.arange(last, device=hidden.device)
            mask = positions <= positions[first:, None]
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            hidden = layer(hidden, rotary, (keys, values), first, mask)
        return hidden

    def _grow(self, length: int, capacity: int) -> None:
        """Moves `length` positions to a larger cache, layer by layer: old and new cache never exist whole together.

        A failure half way loses nothing: no tensor is smaller than `_capacity`, which is set last.
        """
        shape = (self._num_kv_heads, capacity, self._head_size)
        if not self._keys:
            self._keys = [torch.empty(0, 0, 0)] * len(self._layers)
            self._values = list(self._keys)
        for tensors in (self._keys, self._values):
            for index in range(len(self._layers)):
                larger = torch.zeros(shape, dtype=self._dtype, device=self._device)
                if length:
                    larger[:, :length] = tensors[index][:, :length]
                tensors[index] = larger
        like = torch.empty(1, 1, dtype=self._dtype, device=self._device)
        cos, sin = self._rotary(like, torch.arange(capacity, device=self._device)[None])
        # The first half of sin is negated here, so that a rotation is x * cos + roll(x) * sin, without splitting x:
        # x1 cos - x2 sin, x2 cos + x1 sin.
        sin = torch.cat([-sin[..., : self._head_size // 2], sin[..., self._head_size // 2 :]], dim=-1)
        self._rotations = cos[0][:, None], sin[0][:, None]
        self._capacity = capacity


class RMSNorm:
    """Root mean square norm, in transformers' order of operations: the weight is applied after rounding."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.epsilon: float = module.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(self.epsilon))
        return self.weight * (wide * scale).to(hidden.dtype)


class DecoderLayer:
    """Attention and feed-forward of one layer, on its part of the cache."""

    def __init__(self, module: Any, num_heads: int, num_kv_heads: int, head_size: int) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.input_norm = RMSNorm(module.input_layernorm)
        self.post_attention_norm = RMSNorm(module.post_attention_layernorm)
        self.qkv_proj = fused_matmul([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = matmul_of(attention.o_proj)
        self.gate_up_proj = fused_matmul([mlp.gate_proj, mlp.up_proj])
        self.down_proj = matmul_of(mlp.down_proj)
        self.qk_norm = None
        if hasattr(attention, "q_norm"):
            self.qk_norm = RMSNorm(attention.q_norm), RMSNorm(attention.k_norm)
        self.scale: float = attention.scaling
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size

    def __call__(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        first: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            hidden: `[n, hidden]`.
            rotary: Cosines and signed sines, `[n, 1, head size]`.
            cache: Keys and values, `[key-value heads, capacity, head size]`; written from `first` on.
            first: Position of the first row.
            mask: `[n, first + n]`, true where a row sees a position; None: causal, or a single row that sees all.

        Returns:
            `[n, hidden]`.
        """
        num_new, num_heads = hidden.shape[0], self.num_heads
        last = first + num_new
        keys, values = cache
        qkv = self.qkv_proj(self.input_norm(hidden)).view(num_new, -1, self.head_size)
        qk = qkv[:, : num_heads + self.num_kv_heads]
        if self.qk_norm is not None:
            qk = torch.cat([self.qk_norm[0](qk[:, :num_heads]), self.qk_norm[1](qk[:, num_heads:])], dim=1)
        qk = qk * rotary[0] + qk.roll(self.head_size // 2, -1) * rotary[1]
        keys[:, first:last] = qk[:, num_heads:].transpose(0, 1)
        values[:, first:last] = qkv[:, num_heads + self.num_kv_heads :].transpose(0, 1)
        attended = functional.scaled_dot_product_attention(
            qk[:, :num_heads].transpose(0, 1)[None],
            keys[None, :, :last],
            values[None, :, :last],
            attn_mask=mask,
            is_causal=mask is None and num_new > 1,
            scale=self.scale,
            enable_gqa=num_heads > self.num_kv_heads,
        )
        hidden = hidden + self.o_proj(attended[0].transpose(0, 1).reshape(num_new, -1))
        gate, up = self.gate_up_proj(self.post_attention_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down_proj(functional.silu(gate) * up)
