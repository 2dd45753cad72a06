"""Decides whether rounding explains how logits of recorded passes differ from those of plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from specgen.engine.near_ties import gap_between


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding explains.

    Args:
        dtype: The type that the model computes in.
        num_layers: Of the model.
        is_packed: Its weights have 4 or 8 bits.
    """

    dtype: torch.dtype
    num_layers: int
    is_packed: bool = False

    @property
    def tolerance(self) -> float:
        """Returns the largest relative distance of the logits of two correct passes.

        They add in another order and round at other places. A rounding has a relative error of up to epsilon / 2, whose
        root mean square is about 0.2 epsilon. In 16 bits, sums are kept in float32, so the errors that add up are those
        of the hidden state, rounded after attention and after feed-forward: 2 L in either pass, and independent. So the
        distance is about 0.2 epsilon sqrt(4 L) = 0.4 epsilon sqrt(L), and the limit is twice that: in bfloat16 8.8e-3
        for 2 layers, 3.5e-2 for 32. On a CPU it is 0.9 to 2.3 epsilon in bfloat16 and 1.3 to 2.8 in float16 (24 and 30
        layers: Qwen2.5-Coder 0.5B and SmolLM2 135M), where the limits are 3.9 and 4.4.

        float32: the error of a product's sum counts, too; it grows with the root of the terms of a partial sum. The
        limit allows 64 times the above: 8.6e-6 for 2 layers. On a CPU it is 3 to 11 epsilon, where the limit is 250.

        Packed weights: kernels for few and for many rows round the unpacked weights differently (bitsandbytes 0.50
        rounds scale, code and product in one, the product only in the other), which is an error of each product. The
        weights of both kinds alone put logits 1.1e-2 to 2.7e-2 apart in these models, as much as all else: twice the
        limit. A wrong row, position or mask moves logits by about their own size.
        """
        factor = (64 if self.dtype == torch.float32 else 1) * (2 if self.is_packed else 1)
        return 0.8 * factor * torch.finfo(self.dtype).eps * sqrt(self.num_layers)


def difference(found: Tensor, expected: Tensor, rounding: Rounding) -> str | None:
    """Returns how logits of recorded passes differ from those of plain ones beyond rounding; None if they don't.

    Args:
        found: `[rows, vocab]`, of recorded passes.
        expected: `[rows, vocab]`, of plain ones.
        rounding: What may differ.
    """
    distance = relative_distance(found, expected)
    if not distance <= rounding.tolerance:
        return f"recorded passes differ from plain ones by {distance:.1e}"
    tops = torch.stack([expected.argmax(-1), found.argmax(-1)], -1)
    for own, other in expected.gather(-1, tops).tolist():
        gap = gap_between(own, other, rounding.dtype)
        if not gap.is_near_tie:
            return f"recorded passes choose another token than plain ones, with logits {gap.distance:.1e} apart,"
    return None


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of what is expected; NaN if a value is NaN."""
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))
