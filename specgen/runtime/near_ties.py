"""Two tokens at one place of a text in; how far apart the target holds them, and how far rounding reaches there, out.

The rule, for `verify` and `bench` alike. Greedy answers are the same up to the first token that differs; what comes
behind it says nothing. There the target reckons its logits once more, from empty caches, over the text both answers
share. The difference is a near tie if the logits of the two tokens are at most `NUM_STEPS` steps of the compute type
apart: the distance of neighbouring numbers at the logits' size, for a sum of other order ends a few of them away. Seen
on real pairs: up to 1 in bfloat16, 2 in nf4. Below `EXACT_GAP` anything is one: float32 adds so finely that not its
last step counts, but what the layers make of it.

How far two reckonings of the target differ is no part of the rule. A target whose passes over several tokens are wrong
would widen its own limit by as much as it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from specgen.core.results import LogitGap, ModelInfo
from specgen.engine.contract import TargetModel

NUM_STEPS = 4
EXACT_GAP = 1e-3
"""In logits: twenty times the largest difference between two orders of addition seen in float32 on toys."""
_HALF_QUANTS = ("F32", "F16")
"""Weights that llama.cpp multiplies in float16, or with a cache in float16. For all others it rounds the inputs to 8
bits, about bfloat16's step."""


def logit_gap(target: TargetModel, info: ModelInfo, text: Sequence[int], own: int, other: int) -> LogitGap:
    """How far apart the target holds two tokens behind a text, and up to where rounding may decide between them.

    Args:
        target: Its cache is emptied before and after.
        info: The target as it really runs.
        text: Prompt and answer up to the place, at least one token.
        own: What the target alone wrote there.
        other: What was written with a draft.
    """
    target.rewind(0)
    target.feed(text[:-1])
    # A pass of its own for the last token, as the target alone does it.
    logits = target.logits(text, 1)[0]
    first, second = float(logits[own]), float(logits[other])
    size = max(abs(first), abs(second))
    target.rewind(0)
    return LogitGap(abs(first - second), max(NUM_STEPS * step(compute_type(info), size), EXACT_GAP))


def step(dtype: torch.dtype, size: float) -> float:
    """Distance between neighbouring numbers of a type at a size; 0 for a size of 0 or one that is no number."""
    if not 0 < size < math.inf:
        return 0.0
    return float(torch.finfo(dtype).eps) * 2.0 ** math.floor(math.log2(size))


def compute_type(info: ModelInfo) -> torch.dtype:
    """The type whose steps a model's logits are coarse by."""
    found = getattr(torch, info.dtype, None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    return torch.float16 if info.quant in _HALF_QUANTS else torch.bfloat16
