"""What loop and drafters ask of a language model with a cache, whichever engine runs it.

`specgen.engine.model.CachedModel` runs transformers models, `specgen.engine.llamacpp.LlamaCppModel` GGUF files.
"""

from __future__ import annotations

from typing import Protocol

from specgen.engine.model import TargetModel


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
