"""Runs a decoder layer of transformers' own code with a cache, as a multi-token-prediction head has it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from specgen.models.draft_head_layers import HeadLayers
from specgen.models.hybrid_support import cache_argument


def mtp_block(model: Any) -> nn.Module:
    """Builds a layer as the layers of a model with attention, without memory for its weights.

    Args:
        model: A transformers causal language model.
    """
    config = copy.deepcopy(model.config.get_text_config())
    # As `PreTrainedConfig.get_mtp_config` of transformers 5.24, which knows configs with `num_mtp_layers` only: what a
    # config says by layer is said for the head alone, and its feed-forward has experts if any layer has.
    config.num_hidden_layers = 1
    for key, default in (("layer_types", "full_attention"), ("mlp_layer_types", "sparse")):
        if getattr(config, key, None) is not None:
            setattr(config, key, [_kind(config, key, default)])
    if hasattr(config, "first_k_dense_replace"):
        config.first_k_dense_replace = 0
    with torch.device("meta"):
        block: nn.Module = type(model.get_decoder().layers[-1])(config, 0)
    return block.eval().requires_grad_(False)


def _kind(config: Any, key: str, default: str) -> str:
    """Returns what a config says of the head's first layer."""
    kinds: list[str] | None = getattr(config, f"mtp_{key}", None)
    return kinds[0] if kinds else default


class TransformersLayer(HeadLayers):
    """One decoder layer of transformers' code with a cache.

    The cache keeps all positions, also of a layer with a window, so that any number of tokens can be removed.

    Args:
        block: Made by `mtp_block`, with its weights.
        rotary: The target's rotary embedding, without weights.
        config: The target's text config.
    """

    def __init__(self, block: Any, rotary: Any, config: Any) -> None:
        super().__init__(block)
        self._block, self._rotary = block, rotary
        kind = _kind(config, "layer_types", "full_attention")
        self._window: int | None = config.sliding_window if kind == "sliding_attention" else None
        takes_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        self._rotary_options = {"layer_type": kind} if takes_kind else {}
        self._cache_argument = cache_argument(block)
        self.release()

    def release(self) -> None:
        """As in `HeadLayers`."""
        self._cache: Any = DynamicCache()

    def run(self, hidden: Tensor, first: int) -> Tensor:
        """As in `HeadLayers`."""
        num_new = hidden.shape[0]
        if (num_dropped := self._cache.get_seq_length() - first) > 0:
            self._cache.crop(-num_dropped)
        positions = torch.arange(first, first + num_new, device=hidden.device)[None]
        # The target's layers may be on several devices, and this one is where its head is.
        rotations = self._rotary(hidden, position_ids=positions, **self._rotary_options)
        output = self._block(
            hidden[None],
            attention_mask=self._mask(positions[0], hidden.dtype),
            position_ids=positions,
            position_embeddings=tuple(part.to(hidden.device) for part in rotations),
            use_cache=True,
            **{self._cache_argument: self._cache},
        )
        outputs: Tensor = output if isinstance(output, Tensor) else output[0]
        return outputs[0]

    def _mask(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Returns what is added to the scores, `[1, 1, n, positions]`; None: a token sees all positions."""
        last = int(positions[-1]) + 1
        if positions.shape[0] == 1 and (self._window is None or last <= self._window):
            return None
        columns = torch.arange(last, device=positions.device)
        is_hidden = columns > positions[:, None]
        if self._window is not None:
            is_hidden |= columns <= positions[:, None] - self._window
        mask = torch.zeros(is_hidden.shape, dtype=dtype, device=positions.device)
        return mask.masked_fill_(is_hidden, torch.finfo(dtype).min)[None, None]
