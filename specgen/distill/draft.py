"""The shallow draft as a trainable module: token ids and the target's head inputs in, its own head inputs out.

At index i it reads the embedding of token i and, if it reads features, the target's head input at i - 1; its output
takes the place of the target's head input at i, before the target's own head. When it drafts, the features behind the
verified text are its own outputs: `unroll` trains just that (Li et al. 2025, EAGLE-3, arXiv:2503.01840, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.distill.layers import Layer, RmsNorm, rotation
from specgen.distill.settings import Kind


class Draft(nn.Module):
    """Some of the target's layers, trainable; embedding and head stay the target's and are not part of the module.

    Args:
        model: The target, a transformers causal language model.
        kind: What is read.
        target_layers: Indices of the layers to begin with.
    """

    def __init__(self, model: Any, kind: Kind, target_layers: Sequence[int]) -> None:
        super().__init__()
        self.kind = kind
        self.target_layers = tuple(target_layers)
        self.layers = nn.ModuleList(Layer(model.model.layers[index], model.config) for index in target_layers)
        self.norm = RmsNorm(model.model.norm)
        hidden = model.config.hidden_size
        self.fc: nn.Linear | None = None
        if kind == "features":
            device = model.get_input_embeddings().weight.device
            self.fc = nn.Linear(2 * hidden, hidden, bias=False, device=device)
            with torch.no_grad():
                self.fc.weight.copy_(torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1))
        self._target = [model]  # in a list, so that its weights don't count as ours

    def unroll(self, embedded: Tensor, features: Tensor, num_steps: int) -> list[Tensor]:
        """Draft from every position of texts at once, along the tokens that really follow.

        Args:
            embedded: `[batch, n, hidden]`: embeddings of the tokens.
            features: `[batch, n, hidden]`: the target's head inputs at the same positions.
            num_steps: Longest draft.

        Returns:
            For each step s (from 0) `[batch, n, hidden]`: the output at index i of a draft that began at i - s, so
            with true features up to i - s - 1. Indices below s mean nothing.
        """
        num_positions = embedded.shape[1]
        turn = rotation(self._target[0], torch.arange(num_positions, device=embedded.device)[None])
        attentions = [UnrolledAttention() for _ in self.layers]
        outputs: list[Tensor] = []
        known = features
        for _ in range(num_steps):
            hidden = embedded
            if self.fc is not None:
                hidden = self.fc(torch.cat([embedded, shifted(known, 1)], dim=-1))
            for layer, attention in zip(self.layers, attentions, strict=True):
                hidden = layer(hidden, turn, attention.attend)
            known = self.norm(hidden)
            outputs.append(known)
            if self.fc is None:
                # Without features every step sees the same: there is one output only.
                return outputs * num_steps
        return outputs


class UnrolledAttention:
    """Attention of one layer in the unroll: a draft sees true keys up to its beginning, then its own ones."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Step s sees at index i the first step's keys up to i - s, and of step r the one key at i - s + r."""
        step = len(self._keys)
        self._keys.append(keys)
        self._values.append(values)
        group = queries.shape[1] // keys.shape[1]
        if step == 0:
            return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
        batch, num_kv_heads, num_positions, size = keys.shape
        grouped = queries.view(batch, num_kv_heads, group, num_positions, size) * size**-0.5
        positions = torch.arange(num_positions, device=queries.device)
        is_hidden = positions[None, :] > positions[:, None] - step
        scores = (grouped @ self._keys[0][:, :, None].transpose(-1, -2)).masked_fill(is_hidden, float("-inf"))
        own_keys = [shifted(self._keys[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own_values = [shifted(self._values[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own = torch.cat([(grouped * own_key).sum(-1, keepdim=True) for own_key in own_keys], dim=-1)
        weights = torch.cat([scores, own], dim=-1).softmax(-1)
        seen = weights[..., :num_positions] @ self._values[0][:, :, None]
        for index, own_value in enumerate(own_values):
            seen = seen + weights[..., num_positions + index, None] * own_value
        return seen.reshape(queries.shape)


def shifted(values: Tensor, by: int) -> Tensor:
    """`[..., n, size]` moved `by` positions towards the end, zeros first."""
    return values if by == 0 else functional.pad(values[..., :-by, :], (0, 0, by, 0))
