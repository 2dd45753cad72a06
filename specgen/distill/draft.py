"""Defines the draft head as a trainable module: it predicts the target's next features.

Features are the inputs of the target's output head. At index i the draft reads the embedding of token i and, for kind
`features`, the feature at i - 1. Its output replaces the feature at i, before the target's own head. After the verified
text the features are the draft's own outputs: `unroll` trains this case (Li et al. 2025, EAGLE-3, arXiv:2503.01840,
section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.distill.layers import Layer, RmsNorm, rotary_embedding
from specgen.distill.settings import Kind


class Draft(nn.Module):
    """Trainable copies of some layers of the target. The embedding and the head are the target's, not parameters.

    Args:
        model: The target, a transformers causal language model.
        kind: What the draft reads.
        target_layers: Indices of the layers to copy.
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
        self._target = [model]  # in a list, so that its weights are not parameters of this module

    def unroll(self, embedded: Tensor, features: Tensor, num_steps: int) -> list[Tensor]:
        """Drafts from every position of the texts at once, along the tokens of the texts.

        Args:
            embedded: `[batch, n, hidden]`: embeddings of the tokens.
            features: `[batch, n, hidden]`: the target's features at the same positions.
            num_steps: Longest draft.

        Returns:
            For each step s (from 0) `[batch, n, hidden]`: the output at index i of a draft that started at i - s, so
            with the target's features up to i - s - 1. Indices below s are undefined.
        """
        num_positions = embedded.shape[1]
        rotary = rotary_embedding(self._target[0], torch.arange(num_positions, device=embedded.device)[None])
        attentions = [UnrolledAttention() for _ in self.layers]
        outputs: list[Tensor] = []
        previous = features
        for _ in range(num_steps):
            hidden = embedded
            if self.fc is not None:
                hidden = self.fc(torch.cat([embedded, shift(previous, 1)], dim=-1))
            for layer, attention in zip(self.layers, attentions, strict=True):
                hidden = layer(hidden, rotary, attention.attend)
            previous = self.norm(hidden)
            outputs.append(previous)
            if self.fc is None:
                # Without features every step has the same input, so there is only one output.
                return outputs * num_steps
        return outputs


class UnrolledAttention:
    """Computes the attention of one layer in `unroll`: a draft attends to the text before it, then to its own steps."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends in step s at index i to keys up to i - s of step 0, and to key i - s + r of each step r > 0."""
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
        own_keys = [shift(self._keys[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own_values = [shift(self._values[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own = torch.cat([(grouped * own_key).sum(-1, keepdim=True) for own_key in own_keys], dim=-1)
        weights = torch.cat([scores, own], dim=-1).softmax(-1)
        seen = weights[..., :num_positions] @ self._values[0][:, :, None]
        for index, own_value in enumerate(own_values):
            seen = seen + weights[..., num_positions + index, None] * own_value
        return seen.reshape(queries.shape)


def shift(values: Tensor, by: int) -> Tensor:
    """Moves `[..., n, size]` by `by` positions towards the end; zeros come first."""
    return values if by == 0 else functional.pad(values[..., :-by, :], (0, 0, by, 0))
