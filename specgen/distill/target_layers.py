"""Chooses the layers of the target that a draft copies; refuses targets that are not supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.errors import LoadError, SettingsError
from specgen.distill.settings import DistillSettings
from specgen.loading.draft_head_folder import MODEL_TYPES


def choose_layers(folder: Path, name: str, settings: DistillSettings) -> list[int]:
    """Returns the indices of the layers that a draft copies.

    Args:
        folder: Of the target.
        name: Of the target, for messages.
        settings: Of the draft.

    Raises:
        LoadError: The target's architecture is not supported.
        SettingsError: The target does not have the requested layers.
    """
    import transformers

    auto_config: Any = transformers.AutoConfig
    config = auto_config.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config.model_type not in MODEL_TYPES:
        raise LoadError(
            f"cannot make a draft for {name}: its architecture {config.model_type} is not supported",
            f"supported architectures: {', '.join(MODEL_TYPES)}",
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        raise LoadError(
            f"cannot make a draft for {name}: it has sliding-window attention",
            "choose a target with full attention in all layers",
        )
    num_layers, num_chosen = int(config.num_hidden_layers), settings.num_layers
    if num_chosen > num_layers:
        raise SettingsError(f"invalid --num-layers {num_chosen}: the target has {num_layers} layers")
    if settings.layers:
        last = settings.layers[-1]
        if last >= num_layers:
            raise SettingsError(
                f"invalid --layers: there is no layer {last}", f"the target has layers 0 to {num_layers - 1}"
            )
        return list(settings.layers)
    # A draft with features copies the last layers; one without spreads over all, from the first to the last.
    if settings.kind == "features" or num_chosen == 1:
        return list(range(num_layers - num_chosen, num_layers))
    return [round(index * (num_layers - 1) / (num_chosen - 1)) for index in range(num_chosen)]
