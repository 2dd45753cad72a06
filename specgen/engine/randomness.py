"""The two kinds of chance a round needs, behind one small contract: so that a test can walk every outcome instead."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Randomness(Protocol):
    """Where chance comes from."""

    def accept(self, probabilities: Tensor) -> Tensor:
        """Independent decisions: `[n]` probabilities in, `[n]` bool out."""

    def draw(self, probs: Tensor) -> Tensor:
        """One token id, `[]` int64, from the law `[vocab]`. Never one of probability zero."""


class TorchRandomness:
    """Chance from one seeded `torch.Generator`; the global generator is left alone.

    Args:
        seed: Seed; the same seed, settings and machine give the same text.
        device: Where the uniforms are made: the target's device.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device=device).manual_seed(seed)
        # MPS has no float64; everywhere else 53 bits keep rare tokens at their exact rate.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64

    def accept(self, probabilities: Tensor) -> Tensor:
        return accepted(self._uniforms(probabilities.shape[0]), probabilities)

    def draw(self, probs: Tensor) -> Tensor:
        return drawn(self._uniforms(1), probs)

    def _uniforms(self, count: int) -> Tensor:
        device = self._generator.device
        return torch.rand(count, generator=self._generator, dtype=self._dtype, device=device)


def accepted(uniforms: Tensor, probabilities: Tensor) -> Tensor:
    """Decide with uniforms from [0, 1). The strict `<` makes probability 0 impossible and probability 1 certain."""
    return uniforms.to(probabilities.device) < probabilities


def drawn(uniform: Tensor, probs: Tensor) -> Tensor:
    """Invert the distribution function of `probs` `[vocab]` at `uniform` `[1]`.

    The first id whose cumulative probability exceeds the uniform's share has a probability above zero by
    construction; the minimum with the last possible id guards the rounding of the product at the upper end.
    """
    cumulative = probs.cumsum(dim=0, dtype=uniform.dtype)
    share = uniform.to(probs.device) * cumulative[-1]
    last_possible = torch.searchsorted(cumulative, cumulative[-1:], right=False)
    return torch.minimum(torch.searchsorted(cumulative, share, right=True), last_possible).squeeze(0)
