"""Defines the draft head as a trainable module, and the weights of the target that it uses.

Features are the inputs of the target's output head. At index i the draft reads the embedding of token i and, for kind
`features`, the feature at i - 1. Its output replaces the feature at i, before the target's own head. After the verified
text the features are the draft's own outputs: `unroll` trains this case (Li et al. 2025, EAGLE-3, arXiv:2503.01840,
section 3.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.distill.settings import Kind
from specgen.distill.target_texts import TargetText
from specgen.models.decoder import Decoder, Layer
from specgen.models.stored_slots import KvSlots, rotations_at


class SharedWeights:
    """Weights of the target that a draft uses and does not train.

    Args:
        embedding: `[vocab, hidden]`, in the type that the target computes in.
        head: `[vocab, hidden]`, likewise; the attribute has only the rows of `draft_ids`.
        draft_ids: `[m]`: tokens that the draft can propose.
    """

    def __init__(self, embedding: Tensor, head: Tensor, draft_ids: Tensor) -> None:
        self.embedding, self.draft_ids = embedding, draft_ids
        self.head = head[draft_ids].contiguous()
        self.row_of = torch.full((head.shape[0],), -1, device=head.device)
        """`[vocab]`: row of a token in `head`; -1 for tokens that can't be drafted."""
        self.row_of[draft_ids] = torch.arange(len(draft_ids), device=head.device)

    def logits(self, outputs: Tensor) -> Tensor:
        """Returns the logits of `draft_ids`, float32 `[..., m]`, for inputs of the head `[..., hidden]`."""
        return functional.linear(outputs.to(self.head.dtype), self.head).float()


def frequent_ids(texts: Sequence[TargetText], num_ids: int, vocab_size: int, always: Sequence[int]) -> Tensor:
    """Returns the tokens that the target writes most, ascending.

    Ties go to the lower id, which tokenizers learn earlier.

    Args:
        texts: Texts of the target.
        num_ids: How many tokens; 0 is all.
        vocab_size: Size of the vocabulary.
        always: Tokens included regardless of their count, such as end tokens.
    """
    if not num_ids or num_ids >= vocab_size:
        return torch.arange(vocab_size)
    counts = torch.zeros(vocab_size)
    for text in texts:
        counts += torch.bincount(text.ids[text.num_prompt :], minlength=vocab_size)
        # Answers repeat words of their prompts.
        counts += 0.1 * torch.bincount(text.ids[: text.num_prompt], minlength=vocab_size)
    counts[list(always)] = math.inf
    return counts.argsort(descending=True, stable=True)[:num_ids].sort().values


def trainable_copy(layer: Layer, index: int) -> Layer:
    """Copies a layer in float32, with gradients.

    Args:
        layer: Its matrix products are `torch.nn.Linear`.
        index: Of the copy, for the slots.
    """
    copied = copy.deepcopy(layer).float().requires_grad_()
    copied.attention.function.index = index
    return copied


class TrainableDraft(nn.Module):
    """Trainable copies of some layers of the target, in float32.

    Args:
        target: The target.
        kind: What the draft reads.
        target_layers: Indices of the layers to copy.
    """

    def __init__(self, target: Decoder, kind: Kind, target_layers: Sequence[int]) -> None:
        super().__init__()
        self.kind = kind
        self.target_layers = tuple(target_layers)
        self.spec = replace(target.spec, layers=tuple(target.spec.layers[index] for index in target_layers))
        self.layers = [trainable_copy(target.layers[index], place) for place, index in enumerate(target_layers)]
        self._registered = nn.ModuleList(self.layers)
        self.norm = copy.deepcopy(target.norm).float().requires_grad_()
        hidden = self.spec.hidden_size
        self.fc: nn.Linear | None = None
        if kind == "features":
            self.fc = nn.Linear(2 * hidden, hidden, bias=False, device=target.device)
            with torch.no_grad():
                self.fc.weight.copy_(torch.eye(hidden, 2 * hidden, device=target.device))

    def unroll(self, embedded: Tensor, features: Tensor, num_steps: int) -> list[Tensor]:
        """Drafts from every position of the texts at once, along the tokens of the texts.

        Args:
            embedded: `[batch, n, hidden]`: embeddings of the tokens; products are computed in their type.
            features: `[batch, n, hidden]`: the target's features at the same positions.
            num_steps: Longest draft.

        Returns:
            For each step s (from 0) `[batch, n, hidden]`: the output at index i of a draft that started at i - s, so
            with the target's features up to i - s - 1. Indices below s are undefined.
        """
        with _products_in(embedded.dtype, embedded.device):
            return self._steps(embedded.float(), features, num_steps)

    def _steps(self, embedded: Tensor, features: Tensor, num_steps: int) -> list[Tensor]:
        positions = torch.arange(embedded.shape[1], device=embedded.device)[None]
        rotations = rotations_at(self.spec, positions, torch.float32)
        slots = UnrolledSlots(len(self.layers), self.spec.attention_scale)
        outputs: list[Tensor] = []
        previous = features
        for _ in range(num_steps):
            hidden = embedded
            if self.fc is not None:
                hidden = self.fc(torch.cat([embedded, shift(previous, 1)], dim=-1))
            for layer in self.layers:
                hidden = layer(hidden, rotations, slots)
            previous = self.norm(hidden)
            outputs.append(previous)
            if self.fc is None:
                # Without features every step has the same input, so there is only one output.
                return outputs * num_steps
        return outputs


def _products_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which products of float32 are computed in another type."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


class UnrolledSlots(KvSlots):
    """Stores keys and values of all steps in `unroll`: a draft attends to the text before it, then to its own steps.

    Args:
        num_layers: Layers of the draft.
        scale: Factor of the attention scores.
    """

    def __init__(self, num_layers: int, scale: float) -> None:
        self._keys: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self._values: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self._scale = scale

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends in step s at index i to keys up to i - s of step 0, and to key i - s + r of each step r > 0."""
        queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        all_keys, all_values = self._keys[layer], self._values[layer]
        step = len(all_keys)
        all_keys.append(keys)
        all_values.append(values)
        group = queries.shape[1] // keys.shape[1]
        if step == 0:
            attended = functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self._scale, enable_gqa=group > 1
            )
            return attended.transpose(1, 2).flatten(2)
        batch, num_kv_heads, num_positions, size = keys.shape
        grouped = queries.reshape(batch, num_kv_heads, group, num_positions, size) * self._scale
        positions = torch.arange(num_positions, device=queries.device)
        is_hidden = positions[None, :] > positions[:, None] - step
        scores = (grouped @ all_keys[0][:, :, None].transpose(-1, -2)).masked_fill(is_hidden, float("-inf"))
        own_keys = [shift(all_keys[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own_values = [shift(all_values[r], step - r)[:, :, None] for r in range(1, step + 1)]
        own = torch.cat([(grouped * own_key).sum(-1, keepdim=True) for own_key in own_keys], dim=-1)
        weights = torch.cat([scores, own], dim=-1).softmax(-1)
        attended = weights[..., :num_positions] @ all_values[0][:, :, None]
        for index, own_value in enumerate(own_values):
            attended = attended + weights[..., num_positions + index, None] * own_value
        return attended.reshape(queries.shape).transpose(1, 2).flatten(2)


def shift(values: Tensor, by: int) -> Tensor:
    """Moves `[..., n, size]` by `by` positions towards the end; zeros come first."""
    return values if by == 0 else functional.pad(values, (0, 0, by, 0))[..., : values.shape[-2], :]
