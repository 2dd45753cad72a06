"""Do the rows of one pass change each other? A model in, what two passes with different tails say about it out.

A round hands the target several tokens at once. It is lossless only if the logits at a position depend on nothing that
stands behind it. Kernels that look at all rows of a batch break that: bitsandbytes int8 with a threshold chooses its
outlier columns over all rows, and a later draft token then moves the logits of an earlier one.
"""

from __future__ import annotations

from typing import Any

import torch

from specgen.core.results import BatchInvarianceCheck
from specgen.engine.contract import LanguageModel
from specgen.models.transformers_model import CachedModel

NUM_HEAD = 6
NUM_TAIL = 4
NUM_TAILS = 3
"""Tokens fed together, and how many different tails behind the same head are compared."""
NARROW_LAYERS = {"Float16Linear", "Int8Linear"}
"""Those of `specgen.models.formats`."""


def is_float32(target: LanguageModel) -> bool:
    """Whether a target's weights and sums are all plain float32, whose rows interact by rounding at most."""
    if not isinstance(target, CachedModel):
        return False
    # The narrow layers hold their weights in no parameter.
    is_narrow = any(type(module).__name__ in NARROW_LAYERS for module in target.model.modules())
    return not is_narrow and all(parameter.dtype == torch.float32 for parameter in target.model.parameters())


@torch.inference_mode()
def check_batch_invariance(target: LanguageModel, num_tails: int = NUM_TAILS) -> BatchInvarianceCheck:
    """Compare the logits of the same tokens in passes that differ only behind them. Empties the cache.

    All passes have one shape, so the same kernels run, and equal rows are equal to the last bit.

    Args:
        target: The model.
        num_tails: Passes, 2 to `NUM_TAILS`; a difference takes as many again.
    """
    step = max(target.vocab_size // (NUM_HEAD + NUM_TAIL * NUM_TAILS + 1), 1)
    ids = [(step * (index + 1)) % target.vocab_size for index in range(NUM_HEAD + NUM_TAIL * NUM_TAILS)]
    head, rest = ids[:NUM_HEAD], ids[NUM_HEAD:]
    tails = [rest[NUM_TAIL * index :][:NUM_TAIL] for index in range(num_tails)]
    difference = _difference(target, head, tails)
    if difference != 0.0:
        # Some kernels repack their weights in the first pass, so a difference must show again.
        difference = _difference(target, head, tails)
    threshold = outlier_threshold(target.model) if isinstance(target, CachedModel) else 0.0
    return BatchInvarianceCheck(difference, threshold)


def _difference(target: LanguageModel, head: list[int], tails: list[list[int]]) -> float:
    """Largest change of a logit of `head` by the tail behind it; NaN if there was a NaN."""
    rows = torch.stack([_first_rows(target, head, tail) for tail in tails])
    return float((rows[1:] - rows[0]).abs().max())


def _first_rows(target: LanguageModel, head: list[int], tail: list[int]) -> torch.Tensor:
    target.reset()
    try:
        return target.logits([*head, *tail], NUM_HEAD + NUM_TAIL)[:NUM_HEAD].clone()
    finally:
        target.reset()


def outlier_threshold(model: Any) -> float:
    """The largest int8 outlier threshold of the model's layers; 0 where none chooses columns by what is in the rows.

    Whether a text has outliers the check above may not meet, so the threshold alone decides.
    """
    states = (getattr(module, "state", None) for module in model.modules() if type(module).__name__ == "Linear8bitLt")
    return max((float(getattr(state, "threshold", 0.0) or 0.0) for state in states), default=0.0)
