"""Passes of a model over tokens at positions that only the device knows: our decoder's, and transformers' own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from specgen.models.decoder import Decoder
from specgen.models.static.features import StaticFeatures
from specgen.models.static.inputs import PassInputs
from specgen.models.static.slots import TensorSlots
from specgen.models.static.trees import TreeInputs


class DecoderPass:
    """Passes of specgen's decoder on one device; `SegmentedPass` runs it on several.

    Args:
        decoder: In eval mode, without gradients.
    """

    can_branch = True
    reads_whole_cache = False

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.module: nn.Module = decoder
        self.device = decoder.output_device
        self.num_embeddings = decoder.embedding.shape[0]
        self.features: StaticFeatures | None = None
        """Inputs of the head by position, if a draft head reads them."""
        self._last = decoder.segments[-1]
        self._slots = TensorSlots(self._last.spec, self._last.like)

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def record_features(self, first: int, capacity: int) -> StaticFeatures:
        weight = self._decoder.norm.weight
        buffer = torch.zeros(capacity, weight.shape[0], dtype=self._decoder.dtype, device=self.device)
        self.features = StaticFeatures(first, buffer)
        return self.features

    def grow(self, capacity: int, num_kept: int) -> None:
        self._slots.grow(capacity, num_kept)
        if self.features is not None:
            self.features.grow(capacity, num_kept)

    def release(self) -> None:
        self._slots.release()
        if self.features is not None:
            self.features.release()

    def clear(self, first: int) -> None:
        self._slots.clear(first)

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        pass  # all is on one device

    def take_failure(self) -> str | None:
        return None

    def keep_path(self, tree: TreeInputs) -> None:
        self._slots.keep_path(tree)
        if self.features is not None:
            tree.keep_path([self.features.buffer])

    def run(self, ids: Tensor, positions: Tensor, bucket: int, num_last: int, tree: TreeInputs | None = None) -> Tensor:
        decoder = self.decoder
        hidden = self._inputs_of_last(ids, positions, bucket)
        hidden = self._last.run(hidden, self._slots.begin(positions, bucket, tree), self._slots)
        if self.features is None:
            return decoder.logits(decoder.norm(hidden[-num_last:]))
        features = decoder.norm(hidden)
        self.features.write(positions, features)
        return decoder.logits(features[-num_last:])

    def _inputs_of_last(self, ids: Tensor, positions: Tensor, bucket: int) -> Tensor:  # noqa: ARG002
        """Returns the inputs of the last segment, `[n, hidden]` on its device."""
        return self.decoder.embed(ids)


class WholePass:
    """Passes of transformers' own forward on its static cache, for any model with plain attention in all layers.

    Args:
        model: A transformers causal language model in eval mode; see `fits_whole_pass`.
    """

    can_branch = False
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

    def grow(self, capacity: int, num_kept: int) -> None:
        from transformers import StaticCache

        cache: Any = StaticCache(config=self.model.config, max_cache_len=capacity)
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
        # transformers takes a mask of four dimensions as it is. Its own would need to know the position.
        is_hidden = self._columns > positions[:, None]
        bias = torch.zeros(is_hidden.shape, dtype=self._dtype, device=self.device)
        bias = bias.masked_fill_(is_hidden, torch.finfo(self._dtype).min)
        options: dict[str, Any] = {
            "input_ids": ids[None],
            # Padding may be after the last position of a learned embedding, which no text reaches.
            "position_ids": positions.clamp(max=self._last_position)[None],
            "attention_mask": bias[None, None],
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


def fits_whole_pass(model: Any) -> bool:
    """Returns whether `WholePass` runs a model: each layer has a plain key-value cache, without a window."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    try:
        layers = StaticCache(config=model.config, max_cache_len=1).layers
    except (KeyError, ValueError, TypeError, AttributeError):
        return False
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return takes_positions and bool(layers) and all(type(layer) is StaticLayer for layer in layers)
