"""Defines trainable, batched decoder layers with the operations of the target's layers.

Supports Llama-like layers: Llama, Mistral without a window, Qwen2, Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps queries `[batch, heads, new, size]`, keys and values `[batch, kv heads, new, size]` to the queries' shape."""


class RmsNorm(nn.Module):
    """RMS norm with the weight of a transformers norm."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(module.weight.detach().float().clone())
        self.epsilon: float = module.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class Attention(nn.Module):
    """The four projections. The caller decides which positions attend to which."""

    def __init__(self, module: Any, config: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = _linear(module.q_proj), _linear(module.k_proj)
        self.v_proj, self.o_proj = _linear(module.v_proj), _linear(module.o_proj)
        self.q_norm = RmsNorm(module.q_norm) if hasattr(module, "q_norm") else None
        self.k_norm = RmsNorm(module.k_norm) if hasattr(module, "k_norm") else None
        self.head_size = head_size(config)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        batch, num_new, _ = hidden.shape
        queries, keys, values = (
            project(hidden).view(batch, num_new, -1, self.head_size)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = apply_rotary(queries.transpose(1, 2), rotary), apply_rotary(keys.transpose(1, 2), rotary)
        seen = attend(queries, keys, values.transpose(1, 2))
        result: Tensor = self.o_proj(seen.transpose(1, 2).reshape(batch, num_new, -1))
        return result


class FeedForward(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = _linear(module.gate_proj), _linear(module.up_proj)
        self.down_proj = _linear(module.down_proj)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return result


class Layer(nn.Module):
    """A decoder layer in float32, initialized as a copy of a transformers layer, with its parameter names."""

    def __init__(self, module: Any, config: Any) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(module.input_layernorm)
        self.self_attn = Attention(module.self_attn, config)
        self.post_attention_layernorm = RmsNorm(module.post_attention_layernorm)
        self.mlp = FeedForward(module.mlp)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Maps `[batch, new, hidden]` to itself; `rotary` is cosine and sine, `[batch or 1, new, head size]`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, attend)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


def head_size(config: Any) -> int:
    """Returns the number of channels of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def apply_rotary(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates `[batch, heads, new, size]` by position."""
    cos, sin = rotary[0][:, None], rotary[1][:, None]
    low, high = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-high, low], dim=-1) * sin


def rotary_embedding(model: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the model's cosine and sine `[rows, new, head size]` in float32 for positions `[rows, new]`."""
    like = torch.zeros(1, dtype=torch.float32, device=positions.device)
    cos, sin = model.model.rotary_emb(like, positions)
    return cos, sin


def _linear(module: Any) -> nn.Linear:
    weight, bias = module.weight.detach(), module.bias
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    with torch.no_grad():
        copy.weight.copy_(weight.float())
        if bias is not None:
            copy.bias.copy_(bias.detach().float())
    return copy
