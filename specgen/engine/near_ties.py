"""Decides whether two greedy tokens differ only by rounding: for `verify`, `bench`, and recorded passes.

Greedy texts of target and drafter are equal up to the first token that differs; what comes after it says nothing. At
that position the target computes its logits again, from an empty cache, over the common text. The difference is a near
tie if the logits of the two tokens are at most 4 ULP of the compute type apart: sums in another order end a few ULP
away (seen on real pairs: up to 1 in bfloat16, 2 in nf4). Below `MIN_TOLERANCE` every difference is a near tie: float32
is so fine that its last bit matters less than the layers' own amplification of rounding.

The difference between two passes of the target is not part of the rule: a target whose passes over several tokens are
wrong would widen its own tolerance by as much as it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from specgen.core.results import LogitGap, ModelInfo
from specgen.engine.contract import TargetModel

NUM_ULPS = 4
MIN_TOLERANCE = 1e-3
"""In logits: twenty times the largest difference between two orders of addition seen in float32 on toy models."""
_FLOAT16_QUANTS = ("F32", "F16")
"""Weights that llama.cpp multiplies in float16, or with a float16 cache. For all others it rounds the inputs to 8 bits,
about bfloat16's precision."""


def logit_gap(target: TargetModel, info: ModelInfo, text: Sequence[int], own: int, other: int) -> LogitGap:
    """Returns the distance between the logits of two tokens after a text, and the tolerance for rounding.

    Args:
        target: Its cache is emptied before and after.
        text: Prompt and answer up to the position, at least one token.
        own: The token of the baseline.
        other: The token generated with a draft.
    """
    target.rewind(0)
    target.feed(text[:-1])
    # The last token gets a pass of its own, as in the baseline.
    logits = target.logits(text, 1)[0]
    first, second = float(logits[own]), float(logits[other])
    target.rewind(0)
    return gap_between(first, second, compute_type(info))


def gap_between(first: float, second: float, dtype: torch.dtype) -> LogitGap:
    """Returns the distance of two logits that were computed in a type, and the tolerance for rounding."""
    tolerance = NUM_ULPS * ulp(dtype, max(abs(first), abs(second)))
    return LogitGap(abs(first - second), max(tolerance, MIN_TOLERANCE))


def ulp(dtype: torch.dtype, size: float) -> float:
    """Returns the distance between neighbouring numbers of a type at a size; 0 for a size of 0, infinity or NaN."""
    if not 0 < size < math.inf:
        return 0.0
    return float(torch.finfo(dtype).eps) * 2.0 ** math.floor(math.log2(size))


def compute_type(info: ModelInfo) -> torch.dtype:
    """Returns the type whose precision limits a model's logits.

    Packed 16-bit weights are exact in float32, in which the layers compute. Layers in int8, and packed ones in nf4,
    round their inputs to 8 bits, about bfloat16's precision: a last bit that differs moves some inputs to the next of
    255 values.
    """
    if "int8" in (info.quant, info.arithmetic):
        return torch.bfloat16
    dtype = getattr(torch, info.arithmetic or info.dtype, None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    return torch.float16 if info.quant in _FLOAT16_QUANTS else torch.bfloat16
