"""Initializes a draft: fits the input of its first layer linearly, before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specgen.distill.draft import Draft
from specgen.distill.text_generation import TargetText
from specgen.models.decoder import Decoder
from specgen.models.kv_slots import SliceSlots

FIT_TOKENS = 10_000
"""Tokens that the fit reads."""


def fit_input(draft: Draft, target: Decoder, texts: Sequence[TargetText], max_tokens: int = FIT_TOKENS) -> float:
    """Fits a linear map from embedding and feature to the input of the draft's first layer, by least squares.

    Leaves a draft that reads no features unchanged.

    Args:
        draft: Changed in place.
        target: The target, in float32.
        texts: Texts of the target.
        max_tokens: About how many tokens to read.

    Returns:
        Share of the inputs' variance that the map explains.
    """
    if draft.fc is None:
        return 0.0
    embedding = target.embedding
    width = embedding.shape[1]
    squares = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    products = torch.zeros(2 * width, width, dtype=torch.float64)
    total = torch.zeros(width, dtype=torch.float64)
    sums = torch.zeros(width, dtype=torch.float64)
    num_rows = 0
    for text in _sample(texts, max_tokens):
        # The first position is an attention sink; its state differs from all others.
        outputs = _layer_inputs(target, text, draft.target_layers[0])[1:]
        inputs = torch.cat([embedding[text.ids[1:-1]].cpu(), text.features[:-1].float()], dim=1)
        squares += inputs.T @ inputs
        products += inputs.T @ outputs
        total += outputs.double().pow(2).sum(0)
        sums += outputs.double().sum(0)
        num_rows += len(outputs)
    ridge = 1e-3 * squares.diagonal().mean() * torch.eye(2 * width, dtype=torch.float64)
    solution = torch.linalg.solve(squares + ridge, products)
    with torch.no_grad():
        draft.fc.weight.copy_(solution.T)
    rest = (total - 2 * (solution * products).sum(0) + (solution * (squares @ solution)).sum(0)).sum()
    return float(1 - rest / (total - sums.pow(2) / num_rows).sum())


def _sample(texts: Sequence[TargetText], max_tokens: int) -> Iterator[TargetText]:
    """Yields evenly spaced texts with about `max_tokens` tokens together."""
    num_tokens = sum(len(text.ids) for text in texts)
    stride = max(1, math.ceil(num_tokens / max_tokens))
    yield from texts[::stride]


@torch.inference_mode()
def _layer_inputs(target: Decoder, text: TargetText, layer: int) -> Tensor:
    """Returns the inputs of a layer at all positions of a text but the last, float32 `[n - 1, hidden]`."""
    ids = text.ids[:-1].to(target.device)
    slots = SliceSlots(target.spec, target.embedding)
    rotations = slots.begin(0, len(ids))
    hidden = target.embed(ids)
    for earlier in target.layers[:layer]:
        hidden = earlier(hidden, rotations, slots)
    return hidden.cpu()
