"""Where training begins: a linear guess at the input of the first layer a draft took."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from specgen.distill.draft import Draft
from specgen.distill.texts import Text

FIT_TOKENS = 10_000
"""Tokens that are read for the guess."""


def fit_input(draft: Draft, model: Any, texts: Sequence[Text], max_tokens: int = FIT_TOKENS) -> float:
    """Begin where a linear map gets: from embedding and feature to the input of the first layer the draft took.

    Least squares over some of the texts; a draft that reads no features is left alone.

    Args:
        draft: Changed in place.
        model: The target, a transformers causal language model in float32.
        texts: The target's.
        max_tokens: About so many are read once more for the layer's inputs.

    Returns:
        Share of the inputs' variance that the map explains.
    """
    if draft.fc is None:
        return 0.0
    embedding = model.get_input_embeddings().weight.detach().float()
    width = embedding.shape[1]
    squares = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    products = torch.zeros(2 * width, width, dtype=torch.float64)
    total = torch.zeros(width, dtype=torch.float64)
    sums = torch.zeros(width, dtype=torch.float64)
    num_rows = 0
    for text in _some(texts, max_tokens):
        # The first position is where attention rests; its state is unlike all others.
        wanted = _layer_inputs(model, text, draft.target_layers[0])[1:]
        given = torch.cat([embedding[text.ids[1:-1]].cpu(), text.features[:-1].float()], dim=1)
        squares += given.T @ given
        products += given.T @ wanted
        total += wanted.double().pow(2).sum(0)
        sums += wanted.double().sum(0)
        num_rows += len(wanted)
    ridge = 1e-3 * squares.diagonal().mean() * torch.eye(2 * width, dtype=torch.float64)
    solution = torch.linalg.solve(squares + ridge, products)
    with torch.no_grad():
        draft.fc.weight.copy_(solution.T)
    rest = (total - 2 * (solution * products).sum(0) + (solution * (squares @ solution)).sum(0)).sum()
    return float(1 - rest / (total - sums.pow(2) / num_rows).sum())


def _some(texts: Sequence[Text], max_tokens: int) -> Iterator[Text]:
    """Texts at even distances that hold about so many tokens."""
    num_tokens = sum(len(text.ids) for text in texts)
    stride = max(1, math.ceil(num_tokens / max_tokens))
    yield from texts[::stride]


@torch.no_grad()
def _layer_inputs(model: Any, text: Text, layer: int) -> Tensor:
    """Inputs of a layer at all positions of a text but the last, float32 `[n - 1, hidden]`."""
    ids = text.ids[None, :-1].to(model.device)
    states = model.model(ids, output_hidden_states=True, use_cache=False)
    inputs: Tensor = states.hidden_states[layer][0].float().cpu()
    return inputs
