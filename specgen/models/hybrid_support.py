"""Says which models with running states can be used, and refuses the others with the kind of their layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from specgen.core.errors import LoadError

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
show."""
RESTARTED_TYPES = frozenset({"falcon_mamba", "jamba", "mamba", "zamba"})
"""Architectures whose passes over several tokens start from zeros instead, in transformers 5.24."""

INSTEAD = (
    "use its GGUF file if llama.cpp runs it, a model with attention in all layers, or a safetensors folder of a hybrid "
    "that specgen runs: LFM2, Qwen3.5, Qwen3-Next, Granite 4, Falcon-H1, Bamba, OLMo Hybrid, Mamba2"
)

_OTHER_PARTS = ("Norm", "MLP", "Mlp", "MoE", "Moe", "FeedForward", "Dropout", "Residual")
_STATE_PARTS = ("Mixer", "Conv", "Delta")
"""Words in the names of classes: parts that don't read earlier tokens, and parts with a state next to attention."""


def unfit_layers(name: str, kind: str, reason: str) -> LoadError:
    """Returns the refusal of a model whose rejected draft tokens can't be removed, or whose drafts can't be verified.

    Args:
        name: The model or its class.
        kind: The kind of the layers that cause it.
        reason: A sentence about these layers, without its subject.
    """
    return LoadError(f"{name} has layers of the kind {kind}, {reason}", INSTEAD)


def cache_argument(model: Any) -> str:
    """Returns the name of a forward's argument for transformers' cache; empty if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    # Its name changes in transformers 5.40.
    return next((name for name in ("cache", "past_key_values") if name in parameters), "")


def refuse_unfit_states(model: Any) -> None:
    """Refuses a model whose cache can't be returned to an earlier state, or whose passes ignore the cached states.

    Args:
        model: A transformers model; its weights are not read.

    Raises:
        LoadError: Rejected draft tokens would change the text silently.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin

    name, model_type = type(model).__name__, model.config.model_type
    layers = DynamicCache(config=model.config).layers
    # xLSTM accepts a cache and expects another kind of it.
    if not cache_argument(model) or model_type == "xlstm":
        reason = "which don't use transformers' cache, so rejected tokens can't be removed"
        raise unfit_layers(name, layer_kind(model, layers, 0), reason)
    known = (CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin)
    for layer in layers:
        if type(layer).__module__ != CacheLayerMixin.__module__ or not isinstance(layer, known):
            # Such a layer may compress several tokens into one.
            reason = "a cache of the model's own, from which rejected tokens can't be removed"
            raise unfit_layers(name, type(layer).__name__, reason)
    running = [index for index, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if not running:
        return
    kind = layer_kind(model, layers, running[0])
    if model_type not in CONTINUED_TYPES:
        restarts = "whose running state transformers computes from zero in a pass over several tokens"
        untested = "with a running state, and it was not tested that passes over several tokens continue from it"
        reason = restarts if model_type in RESTARTED_TYPES else untested
        raise unfit_layers(name, kind, f"{reason}, so drafts can't be verified")
    # transformers 5.24 applies the limit in passes over several tokens only: for smaller steps, the logits of
    # Nemotron-H differ by up to 0.2 between the two.
    limits = [getattr(module, "time_step_limit", None) or (0.0, math.inf) for module in model.modules()]
    if any(tuple(limit) != (0.0, math.inf) for limit in limits):
        reason = "whose time step transformers limits in passes over several tokens but not in passes over one, so "
        raise unfit_layers(name, kind, reason + "drafts can't be verified")


def layer_kind(model: Any, layers: Sequence[Any], index: int) -> str:
    """Returns the class of the part of a decoder layer that reads earlier tokens; the model's type if none is found.

    Args:
        model: A transformers model.
        layers: Those of its empty cache.
        index: Of the layer.
    """
    from torch.nn import ModuleList

    stacks = (module for module in model.modules() if isinstance(module, ModuleList) and len(module) == len(layers))
    layer = next((stack[index] for stack in stacks), None)
    parts = [] if layer is None else [type(part).__name__ for part in layer.children()]
    found = [part for part in parts if not any(word in part for word in _OTHER_PARTS)]
    with_state = [part for part in found if any(word in part for word in _STATE_PARTS)]
    return next(iter([*with_state, *found]), str(model.config.model_type))
