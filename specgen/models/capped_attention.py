"""Computes attention with capped scores, in the order of transformers (Gemma 2). No fused kernel has them."""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.models.decoder_spec import DecoderSpec


def attend_capped(spec: DecoderSpec, rows: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Attends with rows `[heads, n, head_size]`; the result has the same shape.

    Args:
        seen: Keys and values, `[kv_heads, positions, head_size]` each.
        mask: Which positions each row sees, bool `[n, positions]`; None: all up to its own.
    """
    cap, (keys, values) = spec.attention_soft_cap, seen
    assert cap is not None, "the caller checks it"
    num_heads, num_new, size = rows.shape
    group = num_heads // keys.shape[0]
    grouped = rows.reshape(keys.shape[0], group * num_new, size)
    scores = (grouped @ keys.transpose(1, 2) * spec.attention_scale).view(num_heads, num_new, -1)
    scores = (scores / cap).tanh() * cap
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, num_new, dtype=torch.bool, device=rows.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype)
    return (weights.view(keys.shape[0], group * num_new, -1) @ values).view(num_heads, num_new, size)
