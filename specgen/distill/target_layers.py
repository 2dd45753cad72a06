"""A target's config in, the layers a draft begins with out; what no draft can be made of is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.errors import LoadError, SettingsError
from specgen.distill.settings import DistillSettings
from specgen.loading.draft_head_folder import MODEL_TYPES


def choose_layers(folder: Path, name: str, settings: DistillSettings) -> list[int]:
    """Indices of the layers a draft takes.

    Args:
        folder: The target's.
        name: Its name, for people.
        settings: The draft's.

    Raises:
        LoadError: No shallow draft can be made of such a target.
        SettingsError: It has no such layers.
    """
    import transformers

    auto_config: Any = transformers.AutoConfig
    config = auto_config.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config.model_type not in MODEL_TYPES:
        raise LoadError(
            f"no draft can be made of {name}: its architecture is {config.model_type}",
            f"known architectures are {', '.join(MODEL_TYPES)}",
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        raise LoadError(
            f"no draft can be made of {name}: its attention has a window",
            "choose a target with full attention in all layers",
        )
    num_layers, wanted = int(config.num_hidden_layers), settings.num_layers
    if wanted > num_layers:
        raise SettingsError(f"the target has {num_layers} layers, a draft can't have {wanted}")
    if settings.layers:
        last = settings.layers[-1]
        if last >= num_layers:
            raise SettingsError(f"the target's layers are 0 to {num_layers - 1}: there is no {last}")
        return list(settings.layers)
    # A draft with features takes the last layers; one without spreads over all, first and last among them.
    if settings.kind == "features" or wanted == 1:
        return list(range(num_layers - wanted, num_layers))
    return [round(index * (num_layers - 1) / (wanted - 1)) for index in range(wanted)]
