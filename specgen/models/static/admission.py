"""Compares recorded passes with plain ones before they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.core.errors import MemoryShortageError
from specgen.models.cached_model import CachedModel
from specgen.models.static.model import StaticModel

PROBED_ROWS = (1, 3, 5, 8)
NUM_PROMPT = 12
NUM_RUNS = 3
"""Runs of each probe: the first one is plain, the second is recorded, the third replays."""
TOLERANCES = {torch.float32: 1e-4}
"""Largest relative distance of the logits by compute type: two orders of additions, far below a wrong mask."""
DEFAULT_TOLERANCE = 3e-2


@torch.inference_mode()
def admission_failure(static: StaticModel, plain: CachedModel) -> str | None:
    """Compares the logits of a prompt and of passes over a few rows. Empties both caches.

    Returns:
        Why the recorded passes must not be used; None if they may.
    """
    step = max(static.vocab_size // (NUM_PROMPT + sum(PROBED_ROWS) + 1), 1)
    ids = [(step * (index + 1)) % static.vocab_size for index in range(NUM_PROMPT + max(PROBED_ROWS))]
    parameter = next(iter(static.module.parameters()), None)
    tolerance = TOLERANCES.get(torch.float32 if parameter is None else parameter.dtype, DEFAULT_TOLERANCE)
    try:
        for rows in PROBED_ROWS:
            text = ids[: NUM_PROMPT + rows]
            expected = _probe(plain, text, rows)
            for _ in range(NUM_RUNS):
                distance = relative_distance(_probe(static, text, rows), expected)
                if not distance <= tolerance:
                    return f"recorded passes differ from plain ones by {distance:.1e} over {rows} rows"
    except MemoryShortageError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"recording failed: {str(error).partition(chr(10))[0]}"
    finally:
        static.rewind(0)
        plain.reset()
    return static.take_failure()


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of what is expected; NaN if a value is NaN."""
    return float((found - expected).norm() / expected.norm())


def _probe(model: CachedModel, text: list[int], num_rows: int) -> Tensor:
    model.rewind(0)
    model.feed(text[:-num_rows])
    return model.logits(text, num_rows).clone()
