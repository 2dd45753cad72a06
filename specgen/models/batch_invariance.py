"""Checks batch invariance: do logits at a position depend on later tokens in the same pass?

A round feeds several tokens to the target at once. It is lossless only if the logits at a position don't depend on the
tokens after it. Kernels that look at all rows of a batch break that: bitsandbytes int8 with a threshold chooses its
outlier columns over all rows, and a later draft token then changes the logits of an earlier one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from specgen.core.results import BatchInvarianceCheck
from specgen.engine.contract import LanguageModel
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.formats import PackedLinear
from specgen.models.llama_cpp import LlamaCppModel
from specgen.models.static.inputs import MAX_ROWS
from specgen.models.static.model import StaticModel

NUM_HEAD = 6
NUM_TAIL = 4
NUM_TAILS = 3
"""Tokens of the head, tokens of a tail, and how many different tails after the same head are compared."""
NUM_SINGLE = 2
"""Tokens at the end of the head that get passes of their own."""


def is_float32(target: LanguageModel) -> bool:
    """Returns whether all weights and sums of a target are plain float32, whose rows interact by rounding at most."""
    if not isinstance(target, CachedModel):
        return False
    # The weights of packed layers are no parameters.
    is_packed = any(isinstance(module, PackedLinear) for module in target.module.modules())
    return not is_packed and all(parameter.dtype == torch.float32 for parameter in target.module.parameters())


@torch.inference_mode()
def check_batch_invariance(
    target: LanguageModel, num_tails: int = NUM_TAILS, *, measures_recurrence: bool = True
) -> BatchInvarianceCheck:
    """Compares the logits of the same tokens in passes that differ only after them. Empties the cache.

    All passes have the same shape, so the same kernels run, and rows that don't interact are equal bit for bit.

    Args:
        target: The model.
        num_tails: Passes, 2 to `NUM_TAILS`; if they differ, as many again.
        measures_recurrence: Compares passes over one token and several of a recurrent target, in four more passes.
    """
    # Recorded passes have one kernel for up to 16 rows, and another one for more.
    num_tail = MAX_ROWS - NUM_HEAD if isinstance(target, StaticModel) else NUM_TAIL
    step = max(target.vocab_size // (NUM_HEAD + num_tail * NUM_TAILS + 1), 1)
    ids = [(step * (index + 1)) % target.vocab_size for index in range(NUM_HEAD + num_tail * NUM_TAILS)]
    head, rest = ids[:NUM_HEAD], ids[NUM_HEAD:]
    tails = [rest[num_tail * index :][:num_tail] for index in range(num_tails)]
    difference = _max_difference(target, head, tails)
    if difference != 0.0:
        # Some kernels repack their weights in the first pass, so only a repeated difference counts.
        difference = _max_difference(target, head, tails)
    has_exact_rows = difference == 0.0 and has_independent_rows(target)
    has_states = isinstance(target, (CachedModel, LlamaCppModel)) and target.is_recurrent
    is_measured = measures_recurrence and has_states
    from_one = _difference_from_one(target, head, tails[0]) if has_exact_rows or is_measured else None
    return BatchInvarianceCheck(
        difference,
        outlier_threshold(target.module) if isinstance(target, CachedModel) else 0.0,
        is_exact=has_exact_rows and from_one == 0.0,
        has_exact_trees=not isinstance(target, StaticModel),
        recurrent_difference=from_one if is_measured else None,
    )


def has_independent_rows(target: LanguageModel) -> bool:
    """Returns whether all products of a target have exact rows, and its tokens attend one by one.

    All other kernels differ by the number of rows, so that exactness of a few tokens proves nothing.
    """
    if isinstance(target, StaticModel):
        return target.static_pass.has_exact_rows
    return isinstance(target, DecoderModel) and target.attends_by_row and has_exact_products(target.module)


def has_exact_products(module: nn.Module) -> bool:
    """Returns whether all products of a module give the same for any number of rows: see `PackedLinear`."""
    products = [part for part in module.modules() if hasattr(part, "in_features")]
    return all(isinstance(part, PackedLinear) and part.has_exact_rows for part in products)


def _difference_from_one(target: LanguageModel, head: list[int], tail: list[int]) -> float:
    """Returns the largest difference of a logit between a pass over several tokens and passes over one."""
    together = _head_logits(target, head, tail)
    num_before = NUM_HEAD - NUM_SINGLE
    target.feed(head[:num_before])
    try:
        alone = [target.logits(head[: end + 1], 1)[0].clone() for end in range(num_before, NUM_HEAD)]
    finally:
        target.rewind(0)
    return float((torch.stack(alone) - together[num_before:]).abs().max())


def _max_difference(target: LanguageModel, head: list[int], tails: list[list[int]]) -> float:
    """Returns the largest change of a logit of `head` between tails; NaN if a logit is NaN."""
    rows = torch.stack([_head_logits(target, head, tail) for tail in tails])
    return float((rows[1:] - rows[0]).abs().max())


def _head_logits(target: LanguageModel, head: list[int], tail: list[int]) -> torch.Tensor:
    # Not reset(): recorded passes would be lost.
    target.rewind(0)
    try:
        return target.logits([*head, *tail], NUM_HEAD + len(tail))[:NUM_HEAD].clone()
    finally:
        target.rewind(0)


def outlier_threshold(model: Any) -> float:
    """Returns the largest int8 outlier threshold of the model's layers; 0 if no layer selects outlier columns.

    The passes above may contain no outliers where a later text does, so the threshold alone decides.
    """
    # By name: importing bitsandbytes would delay every start.
    states = (getattr(module, "state", None) for module in model.modules() if type(module).__name__ == "Linear8bitLt")
    return max((float(getattr(state, "threshold", 0.0) or 0.0) for state in states), default=0.0)
