"""What the loop and the drafters need of a language model with a cache, whichever backend runs it.

`specgen.models.transformers_model.CachedModel` runs transformers models,
`specgen.models.llama_cpp.LlamaCppModel` runs GGUF files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TargetModel(Protocol):
    """What the decoding loop needs of a model. `CachedModel` is the real one; tests have a table of laws."""

    device: torch.device
    vocab_size: int
    length: int

    def feed(self, ids: Sequence[int]) -> None:
        """Bring the cache up to `ids`, without wanting logits; `ids` begins with what the cache holds."""

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; begins with what the cache holds.
            num_last: Positions wanted, at least 1; none of them may be in the cache already.
            tail: `[n]` further ids that may live on a device; their beginning may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """

    def rewind(self, length: int) -> None:
        """Take tokens back: at most `length` are held then, or fewer where the model can't stop there."""


class LanguageModel(TargetModel, Protocol):
    """A model that can be target and draft.

    The rule of the cache: between rounds it holds a prefix of `ids[:-1]`; what is missing is fed at the next call.
    The logits that `logits` returns may be overwritten by the model's next call: whoever needs them longer copies.
    """

    num_embeddings: int
    """Ids from here on can't be fed."""
    forward_seconds: float
    """Time inside the model's forward, summed."""
    num_forwards: int

    def reset(self) -> None:
        """Forget everything, and give back what memory it took where the engine can."""
