"""A language model with a memory: ids in, logits out. The only file that touches a KV cache."""

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
"""Tokens of one prefill pass: bounds the memory for attention and the wait after Ctrl-C."""


class CachedModel:
    """Owner of a model's KV cache.

    The rule everything rests on: between rounds the cache holds a prefix of `ids[:-1]`; what is missing is fed at
    the next call, and the last token is always still to be fed. So a fully accepted draft, a rejected one and a new
    chat turn need no special case.

    Args:
        model: A transformers causal language model in eval mode.
        vocab_size: Logits are cut to this width: ids from here on are padding rows or unknown to the other model.

    Raises:
        LoadError: The model keeps a running state, which can't be taken back.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        _refuse_running_state(model)
        self.model = model
        self.vocab_size = vocab_size
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.num_embeddings: int = model.get_input_embeddings().weight.shape[0]
        self.length = 0
        self.target_features: TargetFeatures | None = None
        """What the head read at the positions held; kept if a drafter asks for it with `record_target_features`."""
        self._num_recorded = 0
        self._window: int | None = None
        self._cache: Any = None
        self.forward_seconds = 0.0
        """Time inside the model's forward, summed; on CUDA the time until the kernels were launched."""
        self.num_forwards = 0
        self._cuts_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._new_cache()

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Bring the cache up to `ids`, without wanting logits."""
        while len(ids) > self.length:
            self._forward(self._tensor(ids[self.length : self.length + PREFILL_CHUNK]), 1)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; its first `self.length` tokens must be what the cache holds.
            num_last: Positions wanted, counted from the end; none of them may be in the cache already.
            tail: `[n]` ids that may live on a device: drafted tokens, fed without a host read. Its beginning may be
                in the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """
        num_tail = 0 if tail is None else tail.shape[0]
        num_missing = len(ids) + num_tail - self.length
        assert 1 <= num_last <= num_missing, "positions already in the cache have no logits any more"
        self.feed(ids[: max(self.length, len(ids) + num_tail - max(num_last, PREFILL_CHUNK))])
        new = self._tensor(ids[self.length :])
        if tail is not None and num_tail:
            new = torch.cat([new, tail[max(0, self.length - len(ids)) :].to(self.device)])
        return self._forward(new, num_last)

    def rewind(self, length: int) -> None:
        """Forget what lies after `length` tokens; with a sliding window it may have to forget everything."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        num_removed = self.length - length
        # A windowed layer drops what left the window as soon as it is cropped, so only tokens fed since then can be
        # taken back. Starting over is slow and right; cropping deeper would silently lose part of the window.
        is_beyond_record = self._window is not None and self.length >= self._window and num_removed > self._num_recorded
        if length == 0 or is_beyond_record:
            self.reset()
            return
        self._drop(num_removed)
        self.length = length
        if self.target_features is not None:
            self.target_features.rewind(length)

    def _drop(self, num_removed: int) -> None:
        """Take the last tokens out of the cache."""
        if num_removed or self._window is not None:
            self._cache.crop(-num_removed)
            self._num_recorded = 0
        assert self._cache.get_seq_length() == self.length - num_removed, "the cache and its owner disagree"

    def reset(self) -> None:
        """Forget everything, and give its memory back."""
        self._new_cache()
        if self.target_features is not None:
            self.target_features.rewind(0)

    def record_target_features(self) -> TargetFeatures:
        """Keep, from the next pass on, what the head reads. Asked again, the same."""
        if self.target_features is None:
            self.target_features = TargetFeatures(self.length)
        return self.target_features

    def _new_cache(self) -> None:
        cache: Any = DynamicCache(config=self.model.config)
        # Without it a sliding window can't be rewound once it is full.
        cache.activate_past_recording()
        self._cache = cache
        windows = [layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)]
        self._window = min(windows, default=None)
        self._num_recorded = 0
        self.length = 0

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def _forward(self, new: Tensor, num_last: int) -> Tensor:
        """Feed `new` `[n]`; logits of the last positions, as `logits` returns them. A failure empties the cache."""
        started = perf_counter()
        try:
            with memory_errors():
                logits = self._run(new, num_last)[:, : self.vocab_size].float()
        except BaseException:
            # Some layers may hold the new tokens and others not.
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        self.length += new.shape[0]
        self._num_recorded += new.shape[0]
        return logits

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        """The pass itself: `new` `[n]` behind what the cache holds, to logits `[num_last, width]`."""
        if self.target_features is not None:
            return self._run_in_two(new, num_last, self.target_features)
        options = {"logits_to_keep": num_last} if self._cuts_logits else {}
        output = self.model(
            input_ids=new.unsqueeze(0), past_key_values=self._cache, use_cache=True, return_dict=True, **options
        )
        logits: Tensor = output.logits[0, -num_last:]
        return logits

    def _run_in_two(self, new: Tensor, num_last: int, target_features: TargetFeatures) -> Tensor:
        """The same, with the layers and the head one after the other: what lies between them is kept."""
        body, head = self.model.base_model, self.model.get_output_embeddings()
        output = body(input_ids=new.unsqueeze(0), past_key_values=self._cache, use_cache=True, return_dict=True)
        inputs: Tensor = output.last_hidden_state[0]
        target_features.append(self.length, inputs)
        logits: Tensor = head(inputs[-num_last:])
        return logits


def _refuse_running_state(model: Any) -> None:
    """Refuse Mamba-like and hybrid models: a rewound cache keeps rejected tokens in its state, without a word."""
    is_stateful = getattr(model, "_is_stateful", False)
    if not is_stateful:
        layers = DynamicCache(config=model.config).layers
        is_stateful = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    if is_stateful:
        raise LoadError(
            f"{type(model).__name__} keeps a running state, and rejected draft tokens can't be taken back from it",
            "choose a model with attention in all layers",
        )
