"""Defines the values that loading passes on: a model's files, its config, the resolved and the loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specgen.core.settings import ModelSettings
from specgen.models.decoder_spec import DecoderSpec

if TYPE_CHECKING:
    from specgen.core.results import ModelInfo
    from specgen.engine.contract import LanguageModel
    from specgen.loading.gguf.metadata import GgufHeader

Role = Literal["target", "draft"]
Format = Literal["folder", "gguf", "draft head", "mtp"]
"""`folder`: safetensors for torch; `gguf`: a file for llama.cpp; `draft head`: layers on their target's embeddings;
`mtp`: such layers in the target's own folder."""
DraftHeadKind = Literal["layers", "features", "mtp"]
"""`layers` reads tokens; `features` also reads the inputs of the target's head, and so does `mtp`."""

_UNPACKED_ON_CPU = ("fp8", "mxfp4")
"""Methods that transformers can't compute with on a CPU: it unpacks the weights to the compute type."""


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
        from_gguf: Converted from a GGUF, whose weights were quantized already.
        revision: Commit of a hub model.
        gguf: The file that llama.cpp runs; None for torch.
        notices: What the user should know about the choice of these files.
    """

    path: Path
    name: str
    from_gguf: bool = False
    revision: str | None = None
    gguf: GgufFile | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftHeadConfig:
    """What a draft head is; of a draft head in a folder of its own, its own part of the config.

    Args:
        target_layers: The target's layers it was initialized from, for display.
        target_name: The target's name when the draft was made, for display.
        target_digest: `draft_head_folder.target_digest` of its target.
        num_draft_ids: Number of tokens it can propose; None: all.
        spec: Describes its layers; None for `mtp`, whose layer runs on transformers' code.
        num_unused: Further layers of a `mtp`, for tokens after the next one: its first layer drafts these, too.
    """

    kind: DraftHeadKind
    target_layers: tuple[int, ...]
    target_name: str
    target_digest: str
    num_draft_ids: int | None
    spec: DecoderSpec | None
    num_unused: int = 0

    @property
    def remark(self) -> str:
        """Describes it in a few words."""
        num_layers = 1 if self.spec is None else len(self.spec.layers)
        layers = "1 layer" if num_layers == 1 else f"{num_layers} layers"
        if self.num_unused:
            layers = f"{layers} of {num_layers + self.num_unused}"
        reads = "" if self.kind == "layers" else ", reads the target's features"
        ids = "" if self.num_draft_ids is None else f", proposes {self.num_draft_ids} tokens"
        return f"{layers} on the target's embeddings{reads}{ids}"


@dataclass(frozen=True, slots=True)
class ModuleSizes:
    """Numbers of weights by the modules that hold them: formats apply to some kinds of them only.

    Args:
        linear: Of `torch.nn.Linear`, apart from the head.
        conv1d: Of transformers' `Conv1D`, which bitsandbytes quantizes and packed formats leave in float32.
        embedding: Of the embedding of tokens.
        head: Of the head, which may be the embedding (`is_tied`).
        rest: Others, as fused experts, other embeddings and norms; never quantized.
    """

    linear: int
    conv1d: int
    embedding: int
    head: int
    is_tied: bool
    rest: int

    @property
    def total(self) -> int:
        """All weights; a tied head counts once."""
        return self.linear + self.conv1d + self.embedding + self.rest + (0 if self.is_tied else self.head)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's config, and what the headers of its weight files say.

    Args:
        model_type: transformers' name of the architecture, `llama`.
        vocab_rows: Rows of the logits; may exceed the tokenizer's table. None if the config does not name it.
        max_positions: The context window in tokens; None if the config does not name it.
        quant_method: How the checkpoint is quantized (`gptq`, `bitsandbytes`); None if it is not.
        dtype: Type of most stored weights, `bfloat16`.
        num_parameters: Values in the weight files; tied ones count once.
        widths_fit_blocks: Whether the layers' widths are multiples of 64, the block of 4-bit weights.
        widths: Hidden and intermediate size, if the config names them.
        decoder: Describes the model to specgen's decoder; None if it runs on transformers.
        unsupported: The key of the config that specgen's decoder does not support; empty if it supports all.
        draft_head: Set for a draft head; the sizes above then leave out its target.
        modules: Set by `specgen.loading.module_sizes` before a model is placed that runs on transformers.
        values: Content of config.json.
    """

    model_type: str
    vocab_rows: int | None
    max_positions: int | None
    quant_method: str | None
    dtype: str
    num_parameters: int
    num_weight_bytes: int
    widths_fit_blocks: bool = True
    widths: tuple[int, int] | None = None
    weight_files: tuple[str, ...] = ()
    decoder: DecoderSpec | None = None
    unsupported: str = ""
    draft_head: DraftHeadConfig | None = None
    modules: ModuleSizes | None = None
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def is_unpacked(self, device: str) -> bool:
        """Returns whether the checkpoint is quantized, and its weights are unpacked when it is loaded."""
        return device == "cpu" and self.quant_method in _UNPACKED_ON_CPU


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was found and checked, ready to load.

    Args:
        role: Decides about formats, and for messages.
        config: What its config and the headers of its files say.
        tokenizer: A `Tokenizer`; None for a draft head, which uses its target's.
        num_tokens: The tokenizer's highest id plus one.
        format: Which loader reads it.
        draft_bytes: What its draft takes on a GPU, should the layers be spread over several: see `gpus.leaving_room`.
        notices: What the user should know about its files, one line each.
    """

    files: ModelFiles
    settings: ModelSettings
    role: Role
    config: ModelConfig
    tokenizer: Any = None
    num_tokens: int = 0
    format: Format = "folder"
    draft_bytes: int = 0
    notices: tuple[str, ...] = ()

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
        """The file that llama.cpp runs; None for torch."""
        return self.files.gguf

    @property
    def draft_head(self) -> DraftHeadConfig | None:
        """What its config says of a draft head; None for a complete model."""
        return self.config.draft_head

    @property
    def fits_own_decoder(self) -> bool:
        """Whether specgen's own decoder can run the model."""
        return self.config.decoder is not None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Args:
        info: What really runs.
        notices: What the user should know, one line each.
    """

    model: LanguageModel
    info: ModelInfo
    notices: tuple[str, ...] = ()
