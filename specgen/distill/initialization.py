"""Initializes a draft: chooses the layers of the target that it copies, and fits its first input linearly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.errors import LoadError, SettingsError
from specgen.distill.draft import TrainableDraft
from specgen.distill.settings import DistillSettings
from specgen.distill.target_texts import TargetText
from specgen.loading.draft_head_folder import MODEL_TYPES
from specgen.loading.resolved_model import ModelConfig
from specgen.models.decoder import Decoder
from specgen.models.kv_slots import SliceSlots

FIT_TOKENS = 10_000
"""Tokens that the fit reads."""


def choose_layers(config: ModelConfig, name: str, settings: DistillSettings) -> list[int]:
    """Returns the indices of the target's layers that a draft copies.

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
            f"can't make a draft for {name}: its architecture is not supported ({why})",
            f"supported architectures: {', '.join(MODEL_TYPES)}",
        )
    if any(layer.window is not None for layer in spec.layers):
        raise LoadError(
            f"can't make a draft for {name}: it has sliding-window attention",
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


def fit_input(
    draft: TrainableDraft, target: Decoder, texts: Sequence[TargetText], max_tokens: int = FIT_TOKENS
) -> float:
    """Fits a linear map from embedding and feature to the input of the draft's first layer, by least squares.

    Leaves a draft that reads no features unchanged.

    Args:
        draft: Changed in place.
        target: The target.
        texts: Texts of the target.
        max_tokens: About how many tokens to read, from texts at even distances.

    Returns:
        Share of the inputs' variance that the map explains.
    """
    if draft.fc is None:
        return 0.0
    embedding = target.embedding
    width = embedding.shape[1]
    # MPS has no float64.
    device = torch.device("cpu") if target.device.type == "mps" else target.device
    squares = torch.zeros(2 * width, 2 * width, dtype=torch.float64, device=device)
    products = torch.zeros(2 * width, width, dtype=torch.float64, device=device)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    sums = torch.zeros(width, dtype=torch.float64, device=device)
    num_rows = 0
    stride = max(1, math.ceil(sum(len(text.ids) for text in texts) / max_tokens))
    for text in texts[::stride]:
        # The first position is an attention sink; its state differs from all others.
        outputs = _layer_inputs(target, text, draft.target_layers[0])[1:].to(device)
        embedded = embedding[text.ids[1:-1].to(target.device)].to(device).float()
        inputs = torch.cat([embedded, text.features[:-1].to(device).float()], dim=1)
        squares += inputs.T @ inputs
        products += inputs.T @ outputs
        total += outputs.double().pow(2).sum(0)
        sums += outputs.double().sum(0)
        num_rows += len(outputs)
    ridge = 1e-3 * squares.diagonal().mean() * torch.eye(2 * width, dtype=torch.float64, device=device)
    solution = torch.linalg.solve(squares + ridge, products)
    with torch.no_grad():
        draft.fc.weight.copy_(solution.T)
    rest = (total - 2 * (solution * products).sum(0) + (solution * (squares @ solution)).sum(0)).sum()
    return float(1 - rest / (total - sums.pow(2) / num_rows).sum())


@torch.inference_mode()
def _layer_inputs(target: Decoder, text: TargetText, layer: int) -> Tensor:
    """Returns the inputs of a layer at all positions of a text but the last, float32 `[n - 1, hidden]`."""
    ids = text.ids[:-1].to(target.device)
    slots = SliceSlots(target.spec, target.embedding)
    rotations = slots.begin(0, len(ids))
    hidden = target.embed(ids)
    for earlier in target.layers[:layer]:
        hidden = earlier(hidden, rotations, slots)
    return hidden.float()
