"""Runs a transformers model with a KV cache that can be rewound: token ids to logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from specgen.core.errors import LoadError
from specgen.engine.memory_errors import memory_errors
from specgen.models.target_features import TargetFeatures

PREFILL_CHUNK = 512
"""Tokens of one prefill pass: limits the memory for attention and the delay after Ctrl-C."""


class CachedModel:
    """A model and its KV cache.

    Invariant: between rounds the cache contains a prefix of `ids[:-1]`. The next call feeds what is missing, which is
    the last token at least. So a fully accepted draft, a rejected one and a new chat turn need no special case.

    Args:
        model: A transformers causal language model in eval mode.
        vocab_size: Logits are cut to this width: higher ids are padding, or unknown to the other model.

    Raises:
        LoadError: The model has a recurrent state, which can't be rewound.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        _refuse_recurrent_state(model)
        self.model = model
        self.vocab_size = vocab_size
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.num_embeddings: int = model.get_input_embeddings().weight.shape[0]
        self.length = 0
        self.target_features: TargetFeatures | None = None
        """Inputs of the head at the cached positions; recorded after `record_target_features`."""
        self._num_recorded = 0
        self._window: int | None = None
        self._cache: Any = None
        self.forward_seconds = 0.0
        """Total time in the model's forward; on CUDA, the time until the kernels were launched."""
        self.num_forwards = 0
        self._cuts_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._new_cache()

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Extends the cache to `ids`, without logits."""
        while len(ids) > self.length:
            self._forward(self._tensor(ids[self.length : self.length + PREFILL_CHUNK]), 1)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Returns the logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; its first `self.length` tokens must be those in the cache.
            num_last: Number of positions, counted from the end; none of them may be in the cache already.
            tail: `[n]` drafted ids, which may be on a device: they are fed without a copy to the host. The first of
                them may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """
        num_tail = 0 if tail is None else tail.shape[0]
        num_missing = len(ids) + num_tail - self.length
        assert 1 <= num_last <= num_missing, "the logits of cached positions are not stored"
        self.feed(ids[: max(self.length, len(ids) + num_tail - max(num_last, PREFILL_CHUNK))])
        new = self._tensor(ids[self.length :])
        if tail is not None and num_tail:
            new = torch.cat([new, tail[max(0, self.length - len(ids)) :].to(self.device)])
        return self._forward(new, num_last)

    def rewind(self, length: int) -> None:
        """Drops positions from `length` on; a sliding window may require dropping everything."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        num_removed = self.length - length
        # Cropping a windowed layer drops what left the window, so only tokens fed since the last crop can be removed.
        # Starting over is slow but correct; cropping more would silently lose part of the window.
        is_beyond_record = self._window is not None and self.length >= self._window and num_removed > self._num_recorded
        if length == 0 or is_beyond_record:
            self.reset()
            return
        self._drop(num_removed)
        self.length = length
        if self.target_features is not None:
            self.target_features.rewind(length)

    def _drop(self, num_removed: int) -> None:
        """Removes the last tokens from the cache."""
        if num_removed or self._window is not None:
            self._cache.crop(-num_removed)
            self._num_recorded = 0
        assert self._cache.get_seq_length() == self.length - num_removed, "the cache has another length than expected"

    def reset(self) -> None:
        """Empties the cache and frees its memory."""
        self._new_cache()
        if self.target_features is not None:
            self.target_features.rewind(0)

    def record_target_features(self) -> TargetFeatures:
        """Starts recording the inputs of the head, from the next pass on; returns the same object on every call."""
        if self.target_features is None:
            self.target_features = TargetFeatures(self.length)
        return self.target_features

    def _new_cache(self) -> None:
        cache: Any = DynamicCache(config=self.model.config)
        # Without it, a full sliding window can't be rewound.
        cache.activate_past_recording()
        self._cache = cache
        windows = [layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)]
        self._window = min(windows, default=None)
        self._num_recorded = 0
        self.length = 0

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def _forward(self, new: Tensor, num_last: int) -> Tensor:
        """Feeds `new` `[n]`; returns the logits of the last positions. A failure empties the cache."""
        started = perf_counter()
        try:
            with memory_errors():
                logits = self._run(new, num_last)[:, : self.vocab_size].float()
        except BaseException:
            # Some layers may have cached the new tokens and others not.
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        self.length += new.shape[0]
        self._num_recorded += new.shape[0]
        return logits

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        """Runs `new` `[n]` after the cached tokens; returns logits `[num_last, width]`."""
        if self.target_features is not None:
            return self._run_with_features(new, num_last, self.target_features)
        options = {"logits_to_keep": num_last} if self._cuts_logits else {}
        output = self.model(
            input_ids=new.unsqueeze(0), past_key_values=self._cache, use_cache=True, return_dict=True, **options
        )
        logits: Tensor = output.logits[0, -num_last:]
        return logits

    def _run_with_features(self, new: Tensor, num_last: int, target_features: TargetFeatures) -> Tensor:
        """Runs the layers and the head separately, to record what passes between them."""
        body, head = self.model.base_model, self.model.get_output_embeddings()
        output = body(input_ids=new.unsqueeze(0), past_key_values=self._cache, use_cache=True, return_dict=True)
        features: Tensor = output.last_hidden_state[0]
        target_features.append(self.length, features)
        logits: Tensor = head(features[-num_last:])
        return logits


def _refuse_recurrent_state(model: Any) -> None:
    """Refuses Mamba-like and hybrid models: rewinding would silently leave rejected tokens in their state."""
    is_stateful = getattr(model, "_is_stateful", False)
    if not is_stateful:
        layers = DynamicCache(config=model.config).layers
        is_stateful = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    if is_stateful:
        raise LoadError(
            f"{type(model).__name__} has a recurrent state, which can't be rewound after rejected draft tokens",
            "choose a model with attention in all layers",
        )
