"""Copies and restores the running states of a transformers cache: those of convolutions and recurrences.

Keys and values are stored per token, so that rejected tokens can be removed. A recurrence stores one state for all
tokens so far and overwrites it in place. So its states are copied before a draft, and copied back if a token is
rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specgen.models.hybrid_support import cache_argument

MAX_CHECKPOINTS = 4
"""Ends of prompts whose states are kept, for the next turns of a chat."""
MAX_COPIES = MAX_CHECKPOINTS + 1
"""Copies of the states at a time: also that before the draft."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The states after a prefix of the text.

    Args:
        length: Tokens of the prefix.
        convolutions: The latest inputs of each convolution, by layer and number of the state.
        recurrences: The recurrent states.
    """

    length: int
    convolutions: list[dict[int, Tensor | None]]
    recurrences: list[dict[int, Tensor | None]]


class RunningStates:
    """The running states of one text's cache, and copies of them at some lengths.

    Args:
        layers: The cache's layers with running states; they must record the past inputs of their convolutions.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._checkpoints: list[Checkpoint] = []
        self._before_draft: Checkpoint | None = None

    @property
    def num_layers(self) -> int:
        """Layers with a running state."""
        return len(self._layers)

    @property
    def has_recurrence(self) -> bool:
        """Whether a layer has a recurrent state; unknown, and so False, before the first pass."""
        return any(any(layer.is_recurrent_states_initialized.values()) for layer in self._layers)

    def note_prompt(self, length: int) -> None:
        """Copies the states at the end of a prompt, where a later text may branch off."""
        if all(checkpoint.length != length for checkpoint in self._checkpoints):
            checkpoint = self._at(length) or self._copy(length)
            self._checkpoints = [*self._checkpoints, checkpoint][-MAX_CHECKPOINTS:]

    def note_draft(self, length: int) -> None:
        """Copies the states before a draft."""
        if length and self._at(length) is None:
            self._before_draft = self._copy(length)

    @torch.inference_mode()
    def restore(self, length: int) -> int:
        """Restores the states after the longest prefix of at most `length` tokens that is known.

        Returns:
            The length of the prefix, 0 if none is known.
        """
        known = [checkpoint for checkpoint in self._known() if checkpoint.length <= length]
        if not known:
            return 0
        best = max(known, key=lambda checkpoint: checkpoint.length)
        for layer, convolutions, recurrences in zip(self._layers, best.convolutions, best.recurrences, strict=True):
            layer.conv_states = dict(convolutions)
            for index, state in recurrences.items():
                if state is not None:
                    layer.recurrent_states[index].copy_(state)
        return best.length

    def forget_after(self, length: int) -> None:
        """Drops the copies of longer prefixes: the text goes on differently there."""
        self._checkpoints = [checkpoint for checkpoint in self._checkpoints if checkpoint.length <= length]
        if self._before_draft is not None and self._before_draft.length > length:
            self._before_draft = None

    def _known(self) -> list[Checkpoint]:
        return self._checkpoints if self._before_draft is None else [*self._checkpoints, self._before_draft]

    def _at(self, length: int) -> Checkpoint | None:
        return next((checkpoint for checkpoint in self._known() if checkpoint.length == length), None)

    @torch.inference_mode()
    def _copy(self, length: int) -> Checkpoint:
        return Checkpoint(
            length,
            [_cloned(layer.conv_states) for layer in self._layers],
            [_cloned(layer.recurrent_states) for layer in self._layers],
        )


def _cloned(states: dict[int, Tensor | None]) -> dict[int, Tensor | None]:
    return {index: None if state is None else state.clone() for index, state in states.items()}


@dataclass(frozen=True, slots=True)
class StateSizes:
    """What the running states of a model take.

    Args:
        is_recurrent: Whether a layer has a recurrent state, not only the latest inputs of a convolution.
        num_bytes: All states of one text.
        num_attention_layers: Layers with keys and values.
    """

    is_recurrent: bool
    num_bytes: int
    num_attention_layers: int


@torch.inference_mode()
def state_sizes(model: Any, num_value_bytes: int) -> StateSizes | None:
    """Runs one token through a model without memory for its weights, to learn the shapes of its states.

    Args:
        model: A transformers model on the meta device; converted to bfloat16, as experts on that device need.
        num_value_bytes: Of a value in the model's compute type; most recurrent states are float32 in any case.

    Returns:
        None without running states.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

    cache: Any = DynamicCache(config=model.config)
    running = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if not running:
        return None
    model = model.to("meta", torch.bfloat16).eval()
    ids = torch.zeros((1, 1), dtype=torch.long, device="meta")
    model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    recurrences = [state for layer in running for state in layer.recurrent_states.values() if state is not None]
    convolutions = [state for layer in running for state in layer.conv_states.values() if state is not None]
    num_bytes = sum(
        state.numel() * (4 if state.dtype == torch.float32 else num_value_bytes)
        for state in [*recurrences, *convolutions]
    )
    num_attention_layers = sum(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return StateSizes(bool(recurrences), num_bytes, num_attention_layers)
