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
        root mean square is about 0.2 epsilon, and independent errors of L layers grow with sqrt(L). By how much depends
        on the weights. In bfloat16, distances over epsilon sqrt(L) were: 0.2 to 0.5 for Qwen2.5-Coder 0.5B and SmolLM2
        135M on a CPU; 0.5 to 1.3 for random weights, whose layers outweigh their inputs, of 0.5B (24 layers) and 7B
        (28) on an H200, where two plain passes over 1 and 14 tokens were 1.07 apart. The limit is 2.5.

        float32: the error of a product's sum counts, too; it grows with the root of the terms of a partial sum. On a
        CPU, distances were 0.6 to 2.2; the limit is 51.

        Packed weights: kernels for few and for many rows round the unpacked weights differently (bitsandbytes 0.50
        rounds scale, code and product in one, the product only in the other), which is an error of each product. The
        weights of both kinds alone put logits 1.1e-2 to 2.7e-2 apart in these models, as much as all else: twice the
        limit. A wrong row, position or mask moves logits by about their own size.
        """
        factor = (51 if self.dtype == torch.float32 else 2.5) * (2 if self.is_packed else 1)
        return factor * torch.finfo(self.dtype).eps * sqrt(self.num_layers)


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
