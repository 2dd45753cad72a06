"""Refuses models of transformers whose passes with a cache fail, or whose logits depend on how a text is divided.

A draft is verified in a pass over several tokens after a cache, which `generate` never makes: the code of some
architectures was not written for it. And an encoder, as BERT, reads later tokens, too: it writes no text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.core.errors import LoadError, first_line, is_out_of_memory, library_failures
from specgen.models.batch_invariance import is_float32
from specgen.models.cached_model import CachedModel

NUM_BEFORE, NUM_AFTER = 5, 3
"""Tokens in the cache, and tokens of the pass after it."""
FLOAT32_LIMIT, ROUNDED_LIMIT = 0.01, 0.5
"""Largest difference that rounding explains, as a share of the logits' spread. A router of experts that rounds a tie
the other way changes whole rows in 16 bits, so only a gross difference counts there."""
_HINT = "use a model of another architecture"


@torch.inference_mode()
def refuse_broken_continuation(model: CachedModel, name: str) -> None:
    """Compares passes over the beginning and the rest of a text with one over all of it. Empties the cache.

    Args:
        model: The loaded model; three short passes are made.
        name: For the message.

    Raises:
        LoadError: A pass fails, or the logits differ by more than rounding explains.
        MemoryShortageError: Memory ran out.
    """
    kind = type(model.module).__name__
    step = max(model.vocab_size // (NUM_BEFORE + NUM_AFTER + 1), 1)
    ids = [(step * (index + 1)) % model.vocab_size for index in range(NUM_BEFORE + NUM_AFTER)]
    try:
        whole = model.logits(ids, NUM_AFTER + 1).clone()
        model.rewind(0)
        begun = model.logits(ids[:NUM_BEFORE], 1).clone()
        continued = torch.cat([begun, model.logits(ids, NUM_AFTER)])
        difference = relative_difference(continued, whole)
    except library_failures() as error:
        if is_out_of_memory(error):
            raise
        message = f"{name} is not supported: the code of {kind} fails in passes with a cache: {first_line(error)}"
        raise LoadError(message, f"{_HINT}, or another --quant") from error
    finally:
        model.rewind(0)
    # A difference of NaN does not refuse the model: generation raises NumericalError for it.
    if difference > (FLOAT32_LIMIT if is_float32(model) else ROUNDED_LIMIT):
        message = f"{name} is not supported: {kind} gives other logits if later tokens follow, or after a cache"
        raise LoadError(f"{message} (by {100 * difference:.0f} % of their spread)", _HINT)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns the root of the mean square of a difference, in units of the standard deviation of `expected`'s rows.

    Args:
        found: `[rows, width]`.
        expected: `[rows, width]`.
    """
    spread = expected.std(dim=-1, correction=0).square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / spread.clamp(min=1e-12))
