"""Runs a model with transformers' own code: for what a `DecoderSpec` can't describe."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from specgen.models.cached_model import PREFILL_CHUNK, CachedModel
from specgen.models.dynamic_rotary import DynamicRotary
from specgen.models.hybrid_support import cache_argument, refuse_unfit_states
from specgen.models.running_states import RunningStates
from specgen.models.target_features import TargetFeatures


class TransformersModel(CachedModel):
    """A transformers model and the cache of one text.

    Keys, values and the inputs of convolutions are cropped. If a layer is recurrent, the cache returns to the states
    copied before the draft instead; the accepted tokens are then fed again with the next draft.

    Args:
        model: A transformers causal language model in eval mode.
        vocab_size: As in `CachedModel`.

    Raises:
        LoadError: The model has a running state that can't be restored.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        refuse_unfit_states(model)
        self._cache_argument = cache_argument(model)
        weight: Tensor = model.get_input_embeddings().weight
        super().__init__(vocab_size, weight.shape[0], weight.device)
        self.model = model
        self._cuts_logits = "logits_to_keep" in parameters
        self.switch_length = _switch_length(model.config.get_text_config())
        self._dynamic = DynamicRotary(model)
        if self._dynamic:
            self.draft_limit = self._dynamic.same_until
        # As in `generate`. A model that gets none may count otherwise: RoBERTa from the id of the padding, Bamba from 0
        # in every pass.
        self._takes_positions = "position_ids" in parameters and not model.config.is_encoder_decoder
        self._num_recorded = 0
        self._window: int | None = None
        self._hidden: Tensor | None = None
        """`[n, hidden]`: the head's inputs of the last pass, if they are recorded."""
        self._release()

    def record_target_features(self) -> TargetFeatures:
        """As in `CachedModel`."""
        if self.target_features is None:
            self.model.get_decoder().register_forward_hook(self._keep_hidden)
        return super().record_target_features()

    def _keep_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[0]

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """As in `CachedModel`."""
        if self._dynamic:
            if self._dynamic.begin(len(ids) + 1):
                self.reset()
            self.draft_limit = self._dynamic.same_until
        super().feed(ids)

    @property
    def _first_pass_end(self) -> int:
        return max(super()._first_pass_end, self._dynamic.first_pass_end)

    def _forward(self, new: Tensor, num_last: int) -> Tensor:
        if not self._dynamic:
            return super()._forward(new, num_last)
        start, logits = self.length, []
        for first, last in self._dynamic.passes(start, start + new.shape[0]):
            self._dynamic.prepare(last)
            logits.append(super()._forward(new[first - start : last - start], min(num_last, last - first)))
        return torch.cat(logits)[-num_last:]

    @property
    def module(self) -> nn.Module:
        """The weights."""
        weights: nn.Module = self.model
        return weights

    def _release(self) -> None:
        cache: Any = DynamicCache(config=self.model.config)
        # Without it a sliding window can't be rewound once it is full, nor a convolution at any time.
        cache.activate_past_recording()
        self._cache = cache
        self.states = RunningStates([layer for layer in cache.layers if _is_running(layer)])
        """The states of layers that have no keys and values."""
        windows = [layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)]
        self._window = min(windows, default=None)
        self._num_recorded = 0

    def _end_of_feed(self) -> None:
        if self.states.num_layers and self.length:
            self._crop(0)
            self.states.checkpoints.note_prompt(self.length)

    def _before_draft(self) -> None:
        if self.states.num_layers:
            self.states.checkpoints.note_draft(self.length)

    def _cut(self, length: int) -> int:
        # A layer with a window drops what left the window when it is cropped, so only tokens fed since then can be
        # removed. Starting over is slow and correct; a deeper crop would silently lose part of the window.
        num_tokens = self.length - length
        if self._window is not None and self.length >= self._window and num_tokens > self._num_recorded:
            return 0
        if num_tokens and self.states.num_layers and (self.is_recurrent or num_tokens > self._num_recorded):
            return self._restore(length)
        if num_tokens or self._window is not None or self.states.num_layers:
            self._crop(num_tokens)
        self.states.checkpoints.forget_after(length)
        return length

    def _restore(self, length: int) -> int:
        """Returns to the longest known prefix of at most `length` tokens. Returns its length; 0 if no copy fits."""
        kept = self.states.restore(length)
        num_tokens = self.length - kept
        if not kept or (self._window is not None and num_tokens > self._num_recorded):
            return 0
        for layer in self._cache.layers:
            if isinstance(layer, CacheLayerMixin):
                # A layer with both kinds of states would crop its convolution, too.
                _attention_kind(layer).crop(layer, -num_tokens)
        self._num_recorded = 0
        self.states.checkpoints.forget_after(kept)
        return kept

    def _crop(self, num_tokens: int) -> None:
        self._cache.crop(-num_tokens)
        self._num_recorded = 0
        is_attended = any(isinstance(layer, CacheLayerMixin) for layer in self._cache.layers)
        assert not is_attended or self._cache.get_seq_length() == self.length - num_tokens, (
            "the cache and its owner disagree"
        )

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        options: dict[str, Any] = {
            "input_ids": new.unsqueeze(0),
            self._cache_argument: self._cache,
            "use_cache": True,
            "return_dict": True,
        }
        if self.states.num_layers and self._num_recorded >= PREFILL_CHUNK:
            self._crop(0)  # else the recorded inputs of convolutions grow with the prompt
        if self._takes_positions:
            options["position_ids"] = self._positions(new).unsqueeze(0)
        output = self.model(**options, **({"logits_to_keep": num_last} if self._cuts_logits else {}))
        logits: Tensor = output.logits[0, -num_last:]
        if self.target_features is not None:
            assert self._hidden is not None, "the hook kept it"
            self.target_features.append(self.length, self._hidden)
            self._hidden = None
        self._num_recorded += new.shape[0]
        self.is_recurrent = self.states.has_recurrence
        return logits

    def _positions(self, new: Tensor) -> Tensor:
        return torch.arange(self.length, self.length + new.shape[0], device=new.device)


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


def _is_running(layer: object) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _attention_kind(layer: CacheLayerMixin) -> Any:
    """Returns the class whose `crop` shortens only the keys and values of a layer."""
    kinds: tuple[type, ...] = type(layer).__mro__
    return next(
        kind for kind in kinds if hasattr(kind, "crop") and not issubclass(kind, LinearAttentionCacheLayerMixin)
    )
