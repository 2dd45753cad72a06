"""Runs a model with transformers' own code: for what a `DecoderSpec` can't describe."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from specgen.core.errors import LoadError
from specgen.models.cached_model import CachedModel


class TransformersModel(CachedModel):
    """A transformers model and the cache of one text.

    Args:
        model: A transformers causal language model in eval mode.
        vocab_size: As in `CachedModel`.

    Raises:
        LoadError: The model has a recurrent state, from which tokens can't be removed.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        # Its name changes in transformers 5.40.
        self._cache_argument = next((name for name in ("cache", "past_key_values") if name in parameters), "")
        _refuse_recurrent_state(model, has_cache=bool(self._cache_argument))
        weight: Tensor = model.get_input_embeddings().weight
        super().__init__(vocab_size, weight.shape[0], weight.device)
        self.model = model
        self._cuts_logits = "logits_to_keep" in parameters
        self.switch_length = _switch_length(model.config.get_text_config())
        self._num_recorded = 0
        self._window: int | None = None
        self._release()

    @property
    def module(self) -> nn.Module:
        """The weights."""
        weights: nn.Module = self.model
        return weights

    def _release(self) -> None:
        cache: Any = DynamicCache(config=self.model.config)
        # Without it a sliding window can't be rewound once it is full.
        cache.activate_past_recording()
        self._cache = cache
        windows = [layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)]
        self._window = min(windows, default=None)
        self._num_recorded = 0

    def _remove(self, num_tokens: int) -> bool:
        # A layer with a window drops what left the window when it is cropped, so only tokens fed since then can be
        # removed. Starting over is slow and correct; a deeper crop would silently lose part of the window.
        if self._window is not None and self.length >= self._window and num_tokens > self._num_recorded:
            return False
        if num_tokens or self._window is not None:
            self._cache.crop(-num_tokens)
            self._num_recorded = 0
        assert self._cache.get_seq_length() == self.length - num_tokens, "the cache and its owner disagree"
        return True

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        options: dict[str, Any] = {
            "input_ids": new.unsqueeze(0),
            self._cache_argument: self._cache,
            "use_cache": True,
            "return_dict": True,
        }
        output = self.model(**options, **({"logits_to_keep": num_last} if self._cuts_logits else {}))
        logits: Tensor = output.logits[0, -num_last:]
        self._num_recorded += new.shape[0]
        return logits


def _switch_length(config: Any) -> int | None:
    """Returns the length of a text above which a model's code takes the other factors of LongRoPE; None: never."""
    given = getattr(config, "rope_parameters", None) or {}
    # Per type of layer, or one for all layers.
    tables = [table for table in (given, *given.values()) if isinstance(table, dict)]
    lengths = [
        table["original_max_position_embeddings"]
        for table in tables
        if table.get("rope_type") == "longrope"
        and (table["short_factor"] != table["long_factor"] or table.get("short_mscale") != table.get("long_mscale"))
    ]
    return min(lengths, default=None)


def _refuse_recurrent_state(model: Any, *, has_cache: bool) -> None:
    """Refuses Mamba-like and hybrid models: a rewound cache keeps rejected tokens in its state silently."""
    layers = DynamicCache(config=model.config).layers
    has_state = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    # A model's own kind of cache layer may compress several tokens into one.
    has_own_layers = any(type(layer).__module__ != DynamicCache.__module__ for layer in layers)
    # xLSTM accepts a cache and expects another kind of it.
    if has_state or has_own_layers or not has_cache or model.config.model_type == "xlstm":
        raise LoadError(
            f"{type(model).__name__} keeps a running state, and rejected draft tokens can't be removed from it",
            "choose a model with attention in all layers",
        )
