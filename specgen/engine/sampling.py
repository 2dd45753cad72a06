"""Turns logits into distributions of the next token: temperature, top-k, top-p, min-p and repetition penalty.

Target and draft use the same function, so both apply the same processors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specgen.core.settings import NO_RULES, SamplingSettings, TokenRules
from specgen.engine.randomness import PositionNoise, Randomness, TorchRandomness
from specgen.engine.transfer import has_numpy_view, moved
from specgen.engine.truncation import scaled, truncated_probs, truncates


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses the tokens of one run: the settings and the randomness that target and draft model share.

    Args:
        settings: Processors, applied alike to target and draft.
        randomness: The run's only source of random numbers.
        noise: Ties random choices to positions; `randomness` is not used then.
        rules: Tokens that the target never chooses.
    """

    settings: SamplingSettings
    randomness: Randomness
    noise: PositionNoise | None = None
    rules: TokenRules = NO_RULES

    @classmethod
    def seeded(
        cls, settings: SamplingSettings, device: torch.device, vocab_size: int, rules: TokenRules = NO_RULES
    ) -> Sampler:
        """Makes a sampler from the settings' seed, for a target on this device with logits of this width."""
        is_tied = settings.same_text and not settings.is_greedy
        noise = PositionNoise(settings.seed, vocab_size, device) if is_tied else None
        return cls(settings, TorchRandomness(settings.seed, device), noise, rules)


@dataclass(frozen=True, slots=True)
class TokenDistributions:
    """Distributions of the next token, one row per position, after all processors.

    Args:
        ids: `[rows]`, the likeliest token of each row, or the token that was drawn from it.
        probs: `[rows, vocab]`; None if each row is a point mass at `ids` (greedy, or drawn already).
        is_finite: `[]` bool, False if a row of logits contained NaN, +inf or only -inf. A tensor, so that the check
            can wait for the round's single host read.
    """

    ids: Tensor
    probs: Tensor | None
    is_finite: Tensor

    def row(self, index: int) -> TokenDistributions:
        """Returns one row; `is_finite` is that of all rows."""
        probs = None if self.probs is None else self.probs[index : index + 1]
        return TokenDistributions(self.ids[index : index + 1], probs, self.is_finite)


def token_distributions(
    logits: Tensor, settings: SamplingSettings, seen: Tensor | None = None, noise: Tensor | None = None
) -> TokenDistributions:
    """Turns logits into distributions.

    Args:
        logits: `[rows, vocab]`, float.
        settings: Processors, in transformers' order: penalty, temperature, top-k, top-p, min-p.
        seen: `[rows, vocab]` bool, tokens already in the text of each row, see `SeenTokens`; needed for the
            repetition penalty.
        noise: `[rows, vocab or more]`, see `PositionNoise`: draw a token from each distribution with it.
    """
    logits = penalize(logits, settings.repetition_penalty, seen)
    top_logits, top_ids = likeliest(logits)
    is_finite = top_logits.isfinite().all()
    if settings.is_greedy:
        return TokenDistributions(top_ids, None, is_finite)
    if truncates(settings, logits.shape[-1]):
        probs = truncated_probs(logits, top_logits, settings)
    else:
        probs = scaled(logits, top_logits, settings.temperature).softmax(dim=-1)
    if noise is not None:
        noise = noise[:, : probs.shape[-1]]
        # MPS has no float64, so the division is done where the noise is.
        ratios = probs.cpu() / noise if probs.device.type == "mps" else probs / moved(noise, probs.device)
        return TokenDistributions(likeliest(ratios)[1].to(probs.device), None, is_finite)
    return TokenDistributions(top_ids, probs, is_finite)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the largest logit of each row and the first token that has it; NaN counts as larger than all others.

    Args:
        logits: `[rows, vocab]`, float.

    Returns:
        Logits and ids, `[rows]` each, on the device of `logits`.
    """
    on_host = likeliest_on_host(logits)
    if on_host is None:
        top = logits.max(dim=-1)
        return top.values, top.indices
    return torch.tensor(on_host[0], dtype=logits.dtype), torch.tensor(on_host[1], dtype=torch.int64)


def likeliest_on_host(logits: Tensor) -> tuple[list[float], list[int]] | None:
    """Computes `likeliest` with numpy, as Python numbers; None if that would need a copy.

    numpy searches a row of 150,000 values in 13 us. torch takes 150 us: it carries an index with every value.
    """
    if not has_numpy_view(logits):
        return None
    rows = logits.detach().numpy()
    ids = [int(row.argmax()) for row in rows]
    return [float(row[token]) for row, token in zip(rows, ids, strict=True)], ids


def largest_probability(logits: Tensor) -> float:
    """Returns the probability of the likeliest token of `[1, vocab]` logits. It is a host read.

    Where half of 152,000 logits are minus infinity, torch's `logsumexp` takes 450 us, and its softmax 140.
    """
    return float(logits.softmax(dim=-1).amax())


def penalize(logits: Tensor, penalty: float, seen: Tensor | None) -> Tensor:
    """Makes tokens that are already in the text less likely.

    Source: Keskar et al. 2019 (arXiv:1909.05858), with the sign rule all libraries use.
    """
    if penalty == 1.0 or seen is None:
        return logits
    if has_numpy_view(logits):
        # Few tokens are in the text: 0.1 ms instead of 1.0 for a row of 152,000.
        penalized = logits.clone()
        for row, marks in zip(penalized.numpy(), seen.numpy(), strict=True):
            ids = np.flatnonzero(marks)
            values = row[ids]
            row[ids] = np.where(values > 0, values / penalty, values * penalty)
        return penalized
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
