"""A model on this machine whose weights are not read yet: its files, and what its config and headers say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specgen.core.settings import ModelSettings

if TYPE_CHECKING:
    from specgen.loading.draft_head_folder import DraftHeadFolder
    from specgen.loading.gguf.header import GgufHeader
    from specgen.loading.model_config import ModelConfig

Role = Literal["target", "draft"]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file and its checked header."""

    path: Path
    header: GgufHeader


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are.

    Args:
        path: Folder with config.json, the tokenizer and safetensors; with the tokenizer only if llama.cpp runs the
            model.
        name: Name for messages and reports.
        from_gguf: Converted from a GGUF, whose weights were quantized already.
        revision: Commit of a hub model.
        gguf: The file that llama.cpp runs; None for transformers.
    """

    path: Path
    name: str
    from_gguf: bool = False
    revision: str | None = None
    gguf: GgufFile | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was found and checked, ready to load.

    Args:
        files: Where it is.
        settings: How to load it.
        role: Decides about formats, and for messages.
        config: What its config and the headers of its files say.
        tokenizer: A transformers tokenizer; None for a draft head, which uses its target's.
        num_tokens: The tokenizer's highest id plus one.
        draft_head: Set if the model is a draft head, which runs on its target's embeddings.
    """

    files: ModelFiles
    settings: ModelSettings
    role: Role
    config: ModelConfig
    tokenizer: Any = None
    num_tokens: int = 0
    draft_head: DraftHeadFolder | None = None

    @property
    def name(self) -> str:
        """The name for messages and reports."""
        return self.files.name

    @property
    def path(self) -> Path:
        """The folder with its config and tokenizer."""
        return self.files.path

    @property
    def gguf(self) -> GgufFile | None:
        """The file that llama.cpp runs; None for transformers."""
        return self.files.gguf

    @property
    def fits_own_decoder(self) -> bool:
        """Whether specgen's own decoder can run the model, unless its layers spread over several devices."""
        is_transformers = self.settings.backend.name == "transformers"
        return self.gguf is None and self.config.decoder is not None and not is_transformers
