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

from specgen.models.checkpoints import Checkpoints
from specgen.models.hybrid_support import cache_argument


@dataclass(frozen=True, slots=True)
class _States:
    """The states of all layers, by the number of the state in its layer.

    Args:
        convolutions: The latest inputs of each convolution.
        recurrences: The recurrent states.
    """

    convolutions: list[dict[int, Tensor | None]]
    recurrences: list[dict[int, Tensor | None]]


class RunningStates:
    """The running states of one text's cache, and copies of them at some lengths.

    Args:
        layers: The cache's layers with running states; they must record the past inputs of their convolutions.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self.checkpoints = Checkpoints(self._copy)

    @property
    def num_layers(self) -> int:
        """Layers with a running state."""
        return len(self._layers)

    @property
    def has_recurrence(self) -> bool:
        """Whether a layer has a recurrent state; unknown, and so False, before the first pass."""
        return any(any(layer.is_recurrent_states_initialized.values()) for layer in self._layers)

    @torch.inference_mode()
    def restore(self, length: int) -> int:
        """Restores the states after the longest prefix of at most `length` tokens that is known.

        Returns:
            The length of the prefix, 0 if none is known.
        """
        best = self.checkpoints.best(length)
        if best is None:
            return 0
        kept, states = best
        for layer, convolutions, recurrences in zip(self._layers, states.convolutions, states.recurrences, strict=True):
            layer.conv_states = dict(convolutions)
            for index, state in recurrences.items():
                if state is not None:
                    layer.recurrent_states[index].copy_(state)
        return kept

    @torch.inference_mode()
    def _copy(self, unneeded: _States | None) -> _States:
        convolutions = [_cloned(layer.conv_states, {}) for layer in self._layers]
        # The cache may still use the convolutions' tensors of an earlier copy, and their shapes change.
        into = [{} for _ in self._layers] if unneeded is None else unneeded.recurrences
        recurrences = [_cloned(layer.recurrent_states, old) for layer, old in zip(self._layers, into, strict=True)]
        return _States(convolutions, recurrences)


def _cloned(states: dict[int, Tensor | None], into: dict[int, Tensor | None]) -> dict[int, Tensor | None]:
    """Copies states into tensors that are needed no longer, where there are any."""
    found: dict[int, Tensor | None] = {}
    for index, state in states.items():
        old = into.get(index)
        found[index] = None if state is None else state.clone() if old is None else old.copy_(state)
    return found


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
