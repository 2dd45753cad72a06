"""Chooses the layers of the target that a draft copies; refuses targets that are not supported."""

from __future__ import annotations

from specgen.core.errors import LoadError, SettingsError
from specgen.distill.settings import DistillSettings
from specgen.loading.draft_head_folder import MODEL_TYPES
from specgen.loading.model_config import ModelConfig


def choose_layers(config: ModelConfig, name: str, settings: DistillSettings) -> list[int]:
    """Returns the indices of the layers that a draft copies.

    Args:
        config: Of the target.
        name: Of the target, for messages.
        settings: Of the draft.

    Raises:
        LoadError: The target's architecture is not supported.
        SettingsError: The target does not have the requested layers.
    """
    spec = config.decoder
    if spec is None or config.model_type not in MODEL_TYPES:
        why = f"{config.model_type}: {config.unsupported}" if config.unsupported else config.model_type
        raise LoadError(
            f"cannot make a draft for {name}: its architecture is not supported ({why})",
            f"supported architectures: {', '.join(MODEL_TYPES)}",
        )
    if any(layer.window is not None for layer in spec.layers):
        raise LoadError(
            f"cannot make a draft for {name}: it has sliding-window attention",
            "choose a target with full attention in all layers",
        )
    num_layers, num_chosen = len(spec.layers), settings.num_layers
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
