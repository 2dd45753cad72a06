"""Leaves the likeliest tokens of a distribution: top-k, top-p and min-p, in this order, as transformers does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine.transfer import has_numpy_view, is_on_host

BLOCK_COLUMNS = 64
"""Columns of a block in `largest`."""
MIN_BLOCKS = 256
"""Rows of fewer blocks are searched whole."""


def truncates(settings: SamplingSettings, width: int) -> bool:
    """Returns whether the settings remove tokens from distributions over `width` tokens."""
    return 0 < settings.top_k < width or settings.top_p < 1.0 or settings.min_p > 0.0


def truncated_probs(logits: Tensor, top_logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Computes the distributions of what is left, `[rows, vocab]`.

    Args:
        logits: `[rows, vocab]`.
        top_logits: `[rows]`, the largest of each row.
        settings: Temperature and processors.
    """
    if has_numpy_view(logits):
        return probs_of_candidates(logits, top_logits, settings)
    return probs_by_sorting(logits, top_logits, settings)


def probs_by_sorting(logits: Tensor, top_logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Computes `truncated_probs` on any device, without a host read."""
    scores = scaled(logits, top_logits, settings.temperature)
    scores = _keep_top_k(scores, settings.top_k)
    scores = _keep_top_p(scores, settings.top_p)
    scores = _keep_min_p(scores, settings.min_p)
    return scores.softmax(dim=-1)


def probs_of_candidates(logits: Tensor, top_logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Computes `truncated_probs` in host memory, from the few tokens that can be left.

    Sorting a row of 152,000 tokens takes 17 ms, as long as a third of a pass of a model of 1.5B in int8.
    """
    probs = torch.zeros_like(logits)
    if not bool(top_logits.isfinite().all()):
        return probs.fill_(torch.nan)
    if 0 < settings.top_k < logits.shape[1]:
        thresholds = largest(logits, settings.top_k)[0][:, -1].tolist()
        for row, top, threshold, out in zip(logits, top_logits, thresholds, probs.numpy(), strict=True):
            places = np.flatnonzero(row.numpy() >= threshold)
            _fill(out, places, scaled(row[places], top, settings.temperature).exp().numpy(), settings)
    else:
        weights = scaled(logits, top_logits, settings.temperature).exp_()
        for row, out in zip(weights.numpy(), probs.numpy(), strict=True):
            _fill(out, None, row, settings)
    return probs


def scaled(logits: Tensor, top_logits: Tensor, temperature: float) -> Tensor:
    """Divides logits by the temperature, after the row's largest is subtracted.

    So a tiny temperature doesn't overflow: 0 stays 0, the rest goes to minus infinity. One outside of the logits' type
    would be 0 or infinity there.
    """
    limits = torch.finfo(logits.dtype)
    temperature = min(max(temperature, limits.tiny), limits.max)
    return (logits - top_logits.unsqueeze(-1)).div_(temperature)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Finds the largest values of each row `[rows, columns]`, NaN first: values and columns, `[rows, count]` each.

    On a CPU, torch's `topk` takes 0.7 ms for a row of 152,000 values. This takes 0.1 ms: the largest ones are in the
    blocks with the largest maxima, so only these are searched.
    """
    num_blocks = values.shape[1] // BLOCK_COLUMNS
    if not is_on_host(values) or num_blocks < max(count, MIN_BLOCKS):
        top = values.topk(count)
        return top.values, top.indices
    first_rest = num_blocks * BLOCK_COLUMNS
    blocks = values[:, :first_rest].view(-1, num_blocks, BLOCK_COLUMNS)
    found = blocks.amax(dim=2).topk(count).indices
    columns = (found[..., None] * BLOCK_COLUMNS + torch.arange(BLOCK_COLUMNS)).flatten(1)
    rest = torch.arange(first_rest, values.shape[1]).expand(values.shape[0], -1)
    columns = torch.cat([columns, rest], dim=1)
    top = values.gather(1, columns).topk(count)
    return top.values, columns.gather(1, top.indices)


def _fill(out: Any, places: Any | None, weights: Any, settings: SamplingSettings) -> None:
    """Writes the probabilities of what top-p and min-p leave of weights, the largest of which is 1.

    Args:
        out: `[vocab]` zeros.
        places: Where the weights belong; None: they are all tokens'.
        weights: The tokens' probabilities times their sum.
    """
    total = float(weights.sum())
    removed_mass = (1.0 - settings.top_p) * total
    # Tokens below an equal share of the mass that top-p removes have less than it together.
    likely = np.flatnonzero(weights >= max(removed_mass / len(weights), settings.min_p))
    weights = weights[likely].astype(np.float64)
    places = likely if places is None else places[likely]
    if settings.top_p < 1.0:
        order = np.argsort(weights)
        weights, places = weights[order], places[order]
        mass_below = total - weights.sum()
        is_kept = mass_below + np.cumsum(weights) > removed_mass
        is_kept[-1:] = True
        weights, places = weights[is_kept], places[is_kept]
    out[places] = weights / weights.sum()


def _keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    if top_k <= 0 or top_k >= scores.shape[-1]:
        return scores
    threshold = scores.topk(top_k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < threshold, -torch.inf)


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    if top_p >= 1.0:
        return scores
    ascending, order = scores.sort(dim=-1)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    removed[..., -1] = False
    return scores.masked_fill(removed.scatter(-1, order, removed), -torch.inf)


def _keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    if min_p <= 0.0:
        return scores
    probs = scores.softmax(dim=-1)
    return scores.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -torch.inf)
