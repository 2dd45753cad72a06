"""Runs passes of transformers' own code over tokens at positions that only the device knows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specgen.models.decoder import Decoder
from specgen.models.static.features import StaticFeatures
from specgen.models.static.inputs import PassInputs
from specgen.models.static.trees import TreeInputs

NO_LIMIT = 2**40
"""A cache of this length holds each window whole. Its memory is allocated when a pass writes to it, so never."""


class WholePass:
    """Passes of transformers' own forward on its static cache, for any model whose layers all have keys and values.

    A layer with a window has a cache of full length, too, and the mask hides what left the window. transformers' own
    cache for such layers shifts once the window is full, which a recording can't decide, and can't be rewound then.

    Args:
        model: A transformers causal language model in eval mode; see `fits_whole_pass`.
    """

    can_branch = False
    has_exact_rows = False
    reads_whole_cache = True
    features: StaticFeatures | None = None
    _hidden: Tensor | None = None
    """`[n, hidden]`: inputs of the head in the last pass, if they are recorded."""

    def __init__(self, model: Any) -> None:
        weight: Tensor = model.get_input_embeddings().weight
        self.model = model
        self.module: nn.Module = model
        self.device = weight.device
        self.num_embeddings = weight.shape[0]
        parameters = inspect.signature(model.forward).parameters
        self._cuts_logits = "logits_to_keep" in parameters
        # Its name changes in transformers 5.40.
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._dtype: torch.dtype = model.dtype
        self._last_position = (getattr(model.config, "max_position_embeddings", None) or 2**31) - 1
        self.release()

    @property
    def decoder(self) -> Decoder | None:
        return None

    @property
    def has_window(self) -> bool:
        """Whether a layer has a window."""
        return any(window is not None for window in (windows_by_kind(self.model.config) or {}).values())

    def record_features(self, first: int, capacity: int) -> StaticFeatures:
        width = self.model.config.get_text_config().hidden_size
        self.features = StaticFeatures(first, torch.zeros(capacity, width, dtype=self._dtype, device=self.device))
        self.model.get_decoder().register_forward_hook(self._keep_hidden)
        return self.features

    def _keep_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[0]

    def release(self) -> None:
        self._cache: Any = None
        if self.features is not None:
            self.features.release()
        self._columns = torch.empty(0, dtype=torch.int64, device=self.device)
        self._windows: dict[str, int | None] = {}

    def grow(self, capacity: int, num_kept: int) -> None:
        from transformers import StaticCache
        from transformers.cache_utils import StaticLayer

        windows = windows_by_kind(self.model.config)
        assert windows is not None, "the caller checks it"
        self._windows = windows
        cache: Any = StaticCache(config=self.model.config, max_cache_len=capacity)
        cache.layers = [StaticLayer(max_cache_len=capacity) for _ in cache.layers]
        if self._cache is not None:
            for new, old in zip(cache.layers, self._cache.layers, strict=True):
                if old.is_initialized:
                    new.lazy_initialization(old.keys, old.values)
                    new.keys[:, :, :num_kept] = old.keys[:, :, :num_kept]
                    new.values[:, :, :num_kept] = old.values[:, :, :num_kept]
        self._cache = cache
        self._columns = torch.arange(capacity, device=self.device)
        if self.features is not None:
            self.features.grow(capacity, num_kept)

    def clear(self, first: int) -> None:
        for layer in [] if self._cache is None else self._cache.layers:
            if layer.is_initialized:
                layer.keys[:, :, first:].zero_()
                layer.values[:, :, first:].zero_()

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        pass  # all is on one device

    @property
    def has_failed(self) -> bool:
        return False

    def take_failure(self) -> str | None:
        return None

    def keep_path(self, tree: TreeInputs) -> None:  # noqa: ARG002
        raise AssertionError("these passes compute no trees")

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        bucket: int,  # noqa: ARG002
        num_last: int,
        tree: TreeInputs | None = None,  # noqa: ARG002
    ) -> Tensor:
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.cumulative_length.copy_(positions[0])
        options: dict[str, Any] = {
            "input_ids": ids[None],
            # Padding may be after the last position of a learned embedding, which no text reaches.
            "position_ids": positions.clamp(max=self._last_position)[None],
            "attention_mask": self._masks(positions),
            self._cache_argument: self._cache,
            "use_cache": True,
            "return_dict": True,
        }
        output = self.model(**options, **({"logits_to_keep": num_last} if self._cuts_logits else {}))
        if self.features is not None:
            assert self._hidden is not None, "the hook kept it"
            self.features.write(positions, self._hidden)
        logits: Tensor = output.logits[0, -num_last:]
        return logits

    def _masks(self, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Returns what is added to the scores, `[1, 1, n, capacity]`; by kind of layer if their windows differ.

        transformers takes such masks as they are. Its own would need to know the position.
        """
        masks = {window: self._mask(positions, window) for window in dict.fromkeys(self._windows.values())}
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {kind: masks[window] for kind, window in self._windows.items()}

    def _mask(self, positions: Tensor, window: int | None) -> Tensor:
        is_hidden = self._columns > positions[:, None]
        if window is not None:
            is_hidden |= self._columns <= positions[:, None] - window
        bias = torch.zeros(is_hidden.shape, dtype=self._dtype, device=self.device)
        return bias.masked_fill_(is_hidden, torch.finfo(self._dtype).min)[None, None]


def fits_whole_pass(model: Any) -> bool:
    """Returns whether `WholePass` runs a model: all layers have keys and values, and the windows are known."""
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return takes_positions and windows_by_kind(model.config) is not None


def windows_by_kind(config: Any) -> dict[str, int | None] | None:
    """Returns the windows of a model's layers by the kind of the layer; None: it has another cache in some layer.

    Args:
        config: Of a transformers model. If it does not name the kinds of the layers, all are of one kind.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    text_config = config.get_text_config(decoder=True)
    if getattr(text_config, "attention_chunk_size", None) is not None:
        return None  # its layers have the cache of a window, but see the tokens of one chunk
    try:
        layers: list[Any] = StaticCache(config=config, max_cache_len=NO_LIMIT).layers
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    kinds = getattr(text_config, "layer_types", None) or [""] * len(layers)
    windows: dict[str, int | None] = {}
    for kind, layer in zip(kinds, layers, strict=False):
        if type(layer) not in (StaticLayer, StaticSlidingWindowLayer):
            return None
        window = layer.max_cache_len if type(layer) is StaticSlidingWindowLayer else None
        if windows.setdefault(kind, window) != window:
            return None
    return windows or None


@contextmanager
def short_windows(config: Any, window: int) -> Iterator[bool]:
    """Shortens all windows of a model for a while, so that a short text fills them; says whether that succeeded.

    Caches that were made before must be emptied before and after.

    Args:
        config: Of a transformers model with windows.
        window: In tokens.
    """
    text_config = config.get_text_config(decoder=True)
    before = text_config.sliding_window
    text_config.sliding_window = window
    try:
        found = windows_by_kind(config)
        yield found is not None and set(found.values()) <= {window, None}
    finally:
        text_config.sliding_window = before
