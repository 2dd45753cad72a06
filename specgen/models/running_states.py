"""Copies and restores the running states of a transformers cache: those of convolutions and recurrences.

Keys and values are stored per token, so that rejected tokens can be removed. A recurrence stores one state for all
tokens so far and overwrites it in place. So its states are copied before a draft, and copied back if a token is
rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specgen.core.errors import LoadError

MAX_CHECKPOINTS = 4
"""Ends of prompts whose states are kept, for the next turns of a chat."""

CONTINUED_TYPES = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "lfm2",
        "lfm2_moe",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "zamba2",
    }
)
"""Architectures with running states whose passes over several tokens continue from the states in the cache, as tests
show. In transformers 5.24 the scans of Mamba, FalconMamba, Jamba and Zamba start from zeros instead."""


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

    @property
    def num_bytes(self) -> int:
        """Memory of one copy of the recurrent states."""
        states = (state for layer in self._layers for state in layer.recurrent_states.values() if state is not None)
        return sum(state.numel() * state.element_size() for state in states)

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


def refuse_unfit_states(model: Any, layers: Sequence[Any], *, has_cache: bool) -> None:
    """Refuses a model whose cache can't be returned to an earlier state, or whose passes ignore the cached states.

    Args:
        model: A transformers model.
        layers: Those of its empty cache.
        has_cache: Whether its forward takes transformers' cache.

    Raises:
        LoadError: Rejected draft tokens would change the text silently.
    """
    from transformers.cache_utils import CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin

    name, kind = type(model).__name__, model.config.model_type
    hint = "choose a model with attention in all layers, or of a hybrid architecture that specgen runs: LFM2, Qwen3.5, "
    hint += "Qwen3-Next, Granite 4, Falcon-H1, Bamba, OLMo Hybrid"
    # xLSTM accepts a cache and expects another kind of it.
    if not has_cache or kind == "xlstm":
        raise LoadError(f"{name} keeps a running state outside of transformers' cache, so it can't be restored", hint)
    known = (CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin)
    own = next((layer for layer in layers if type(layer).__module__ != CacheLayerMixin.__module__), None)
    if own is not None or not all(isinstance(layer, known) for layer in layers):
        # Such a layer may compress several tokens into one.
        raise LoadError(
            f"{name} has cache layers of its own kind, {type(own).__name__}, from which tokens can't be removed",
            hint,
        )
    if kind not in CONTINUED_TYPES and any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        raise LoadError(
            f"{name} has layers with a running state ({kind}) that transformers computes from zero in a pass over "
            "several tokens, or that was not tested, so drafts can't be verified",
            hint,
        )
    # transformers 5.24 applies the limit in passes over several tokens only: for smaller steps, the logits of
    # Nemotron-H differ by up to 0.2 between the two.
    limits = [getattr(module, "time_step_limit", None) or (0.0, math.inf) for module in model.modules()]
    if any(tuple(limit) != (0.0, math.inf) for limit in limits):
        raise LoadError(
            f"{name} has Mamba layers ({kind}) whose time step transformers limits in passes over several tokens but "
            "not in passes over one, so drafts can't be verified",
            hint,
        )
