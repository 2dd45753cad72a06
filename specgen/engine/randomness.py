"""Makes the random choices of a round. The interface is small, so that tests can enumerate every outcome instead."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.engine.transfer import has_numpy_view, is_on_host

BLOCK_TOKENS = 64
"""Tokens of a block in `drawn`."""
WIDE_TOKENS = 2**14
"""Distributions over fewer tokens are summed token by token."""


class Randomness(Protocol):
    """Makes the random choices of a run."""

    def accept(self, probabilities: Tensor) -> Tensor:
        """Decides independently with each of `[n]` probabilities. Returns `[n]` bool."""

    def draw(self, probs: Tensor) -> Tensor:
        """Draws a token id, `[]` int64, from the distribution `[vocab]`. Its probability is never zero."""


class TorchRandomness:
    """Uses one seeded `torch.Generator`, and never the global one.

    Args:
        seed: The same seed, settings and machine give the same text.
        device: Device of the generator: the target's.
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


class PositionNoise:
    """Ties random choices to positions: exponential noise per position of the text, the same for target and draft.

    Both choose the token with the largest probability / noise, which is an exact draw from the distribution (the
    Gumbel-max trick). The target's choice then depends on seed, text and position only. A draft token is a point mass,
    accepted if the draft's distribution with the same noise gives the same token.
    Source: Maddison et al. 2014 (arXiv:1411.0030) for the trick; Daliri et al. 2024 (arXiv:2408.07978) for its use
    here.

    Args:
        seed: The same seed and kind of device give the same noise.
        vocab_size: Width of the target's distributions.
        device: The target's. MPS has no float64, so its noise is made on the CPU.
    """

    def __init__(self, seed: int, vocab_size: int, device: torch.device | None = None) -> None:
        self._seed = seed
        self._vocab_size = vocab_size
        on_cpu = device is None or device.type == "mps"
        # On CUDA its numbers follow from seed and index alone, so setting the seed is as fast as drawing on.
        self._generator = torch.Generator(device="cpu" if on_cpu else device)
        self._rows: dict[int, Tensor] = {}

    def rows(self, first: int, count: int) -> Tensor:
        """Returns noise at positions `first` to `first + count - 1`: float64 `[count, vocab_size]`, above 0."""
        # The draft needs the rows of a round one by one before the target needs all of them.
        self._rows = {at: row for at, row in self._rows.items() if at >= first - MAX_DRAFT_TOKENS}
        return torch.stack([self._row(position) for position in range(first, first + count)])

    def _row(self, position: int) -> Tensor:
        row = self._rows.get(position)
        if row is None:
            mixed = (self._seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) % 2**63
            generator = self._generator.manual_seed(mixed)
            # In float32 one value in 2^24 is 0 and would always win: with 150,000 tokens that is an arbitrary token at
            # one position in a hundred.
            row = torch.empty(self._vocab_size, dtype=torch.float64, device=generator.device)
            if is_on_host(row):
                # What torch's exponential_ computes there, one value after another and three times as slowly.
                row.uniform_(generator=generator).neg_().log1p_().neg_()
            else:
                row.exponential_(generator=generator)
            row.clamp_(min=torch.finfo(torch.float64).tiny)
            self._rows[position] = row
        return row


def accepted(uniforms: Tensor, probabilities: Tensor) -> Tensor:
    """Decides with uniforms from [0, 1). The strict `<` makes probability 0 impossible and probability 1 certain."""
    if probabilities.device.type == "mps":
        return uniforms.to(torch.float32).to(probabilities.device) < probabilities
    return uniforms.to(probabilities.device) < probabilities


def drawn(uniform: Tensor, probs: Tensor) -> Tensor:
    """Inverts the cumulative distribution of `probs` `[vocab]` at `uniform` `[1]`.

    The first id whose cumulative probability exceeds the uniform's share has a probability above zero by
    construction. The minimum with the last possible id guards against rounding of the product at the upper end.
    """
    dtype = torch.float32 if probs.device.type == "mps" else uniform.dtype
    if probs.shape[0] >= WIDE_TOKENS and has_numpy_view(probs):
        return torch.tensor(_drawn_by_blocks(float(uniform), probs))
    cumulative = probs.cumsum(dim=0, dtype=dtype)
    share = uniform.to(dtype).to(probs.device) * cumulative[-1]
    last_possible = torch.searchsorted(cumulative, cumulative[-1:], right=False)
    return torch.minimum(torch.searchsorted(cumulative, share, right=True), last_possible).squeeze(0)


def _drawn_by_blocks(uniform: float, probs: Tensor) -> int:
    """Computes `drawn` in host memory: first the block of the token, then the token in it."""
    first_rest = probs.shape[0] // BLOCK_TOKENS * BLOCK_TOKENS
    blocks = probs[:first_rest].view(-1, BLOCK_TOKENS).sum(dim=1, dtype=torch.float64).detach().numpy()
    values = probs.detach().numpy()
    ends = np.append(blocks, values[first_rest:].sum(dtype=np.float64)).cumsum()
    share = uniform * ends[-1]
    block = min(ends.searchsorted(share, "right"), ends.searchsorted(ends[-1]))
    first = block * BLOCK_TOKENS
    # Counted from the block's start: tokens far less likely than all before them together would be lost.
    inside = values[first : first + BLOCK_TOKENS].cumsum(dtype=np.float64)
    share -= ends[block - 1] if block else 0.0
    return int(first + min(inside.searchsorted(share, "right"), inside.searchsorted(inside[-1])))
