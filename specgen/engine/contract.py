"""Defines the interface of a language model with a cache, for the loop and the drafters.

Implementations: `models.decoder.DecoderModel` (our forward pass), `models.transformers_model.CachedModel`
(transformers) and `models.llama_cpp.LlamaCppModel` (GGUF files).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TargetModel(Protocol):
    """Computes logits for the decoding loop. `TableModel` in `enumeration.py` is the smallest implementation."""

    device: torch.device
    vocab_size: int
    length: int

    def feed(self, ids: Sequence[int]) -> None:
        """Extends the cache to `ids`, without computing logits. `ids` must start with the cached tokens."""

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Computes the logits at the last positions of `ids` followed by `tail`, and extend the cache to them.

        Args:
            ids: The text; starts with the cached tokens.
            num_last: Number of positions, at least 1; none of them may be in the cache already.
            tail: `[n]` further ids, possibly on a device; the first of them may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """

    def rewind(self, length: int) -> None:
        """Shortens the cache to at most `length` tokens; to fewer if the model can't stop there."""


class LanguageModel(TargetModel, Protocol):
    """A model that can be target or draft.

    Cache rule: between rounds the cache holds a prefix of `ids[:-1]`; the next call feeds what is missing.
    The model's next call may overwrite the tensor that `logits` returned: copy it to keep it.
    """

    num_embeddings: int
    """Ids from this one on can't be fed."""
    forward_seconds: float
    """Total time inside the model's forward."""
    num_forwards: int

    def reset(self) -> None:
        """Empties the cache and free its memory if the backend can."""
