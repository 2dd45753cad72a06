"""Refuses GGUF files that hold no language model, and says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.reader import ForeignFileError

_EMBEDDINGS = (
    *("bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "eurobert"),
    *("t5encoder", "gemma-embedding", "llama-embed"),
)
_IMAGES = (
    *("flux", "sd1", "sd3", "sdxl", "wan", "hyvid", "cosmos"),
    *("hidream", "ltxv", "aura", "lumina2", "qwen_image", "pig"),
)
_ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "clip": ("is the encoder of images or sound (mmproj) of a model", "give the model's own file"),
    **dict.fromkeys(_EMBEDDINGS, ("is a model for embeddings, which writes no text", "")),
    **dict.fromkeys(_IMAGES, ("is a model that draws images, which writes no text", "")),
    "t5": ("is a model with an encoder, for translations", "use a model that continues a text"),
    "whisper": ("is a model for speech", "use a model that continues a text"),
    "wavtokenizer-dec": ("is a part of a model that speaks", "use a model that continues a text"),
}
"""What files of these architectures are, and what to do."""
_TYPES: Mapping[str, tuple[str, str]] = {
    "adapter": ("is an adapter (LoRA) of another model", "merge it into its base model (llama-export-lora)"),
    "imatrix": ("is an importance matrix, from which other files are quantized", "give the quantized model"),
    "mmproj": _ARCHITECTURES["clip"],
}
"""The same for values of `general.type`."""


def refuse_other_kinds(kind: str | None, architecture: str) -> None:
    """Refuses files of other kinds by name: they are whole, and neither a backend nor another version runs them.

    Args:
        kind: `general.type`.
        architecture: `general.architecture`; empty in later parts of a model.

    Raises:
        ForeignFileError: It is such a file.
    """
    found = _TYPES.get(kind or "") or _ARCHITECTURES.get(architecture)
    if found is not None:
        raise ForeignFileError(*found)


def refuse_vocabulary(header: GgufHeader, path: Path) -> None:
    """Refuses a file that has a vocabulary and no weights, like those that llama.cpp tests its tokenizers with.

    Raises:
        ModelFileError: It is such a file.
    """
    if not header.num_parameters and header.num_parts == 1 and header.tokenizer_model is not None:
        raise ModelFileError(f"{path} has a vocabulary only, and no weights", "give the file of the whole model")
