"""A model of a plan in, the model on the engine that runs it out: transformers, or llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings
from specgen.engine.contract import LanguageModel
from specgen.loading.config_check import ConfigFacts
from specgen.loading.resolve import ModelFolder
from specgen.loading.transformers_weights import LoadedModel, load_model
from specgen.models.decoder import DecoderModel, decoder_model
from specgen.models.llama_cpp import LlamaCppModel
from specgen.models.transformers_model import CachedModel
from specgen.storage.cost_store import CostStore


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that is ready to run; `notices` is what loading has to tell."""

    model: LanguageModel
    info: ModelInfo
    notices: tuple[str, ...]


def open_model(
    folder: ModelFolder,
    facts: ConfigFacts,
    tokenizer: Any,
    settings: ModelSettings,
    *,
    role: Literal["target", "draft"],
    vocab_size: int,
    progress: ProgressListener = SILENT,
) -> OpenedModel:
    """Read the weights of a model.

    Args:
        folder: Where they lie, and which engine runs them.
        facts: What is known of them; for llama.cpp also how large a cache to make.
        tokenizer: What the text will be encoded with.
        settings: How to load them.
        role: For messages.
        vocab_size: Logits are cut to this width.
        progress: Receives the progress of loading.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: No such device, or too little memory.
    """
    if folder.gguf is not None:
        return _open_gguf(folder, facts, tokenizer, settings, role, vocab_size, progress)
    loaded = load_model(
        folder.path,
        settings,
        role=role,
        from_gguf=folder.from_gguf,
        on_stage=progress.stage,
        name=folder.name,
        revision=folder.revision,
        times=CostStore(),
    )
    model = cached_model_for(loaded, vocab_size, role)
    return OpenedModel(model, loaded.info, loaded.notices)


def cached_model_for(loaded: LoadedModel, vocab_size: int, role: Literal["target", "draft"]) -> CachedModel:
    """The fastest owner of a transformers model's cache for its role; logits are cut to `vocab_size`."""
    model = decoder_model(loaded.model, vocab_size)
    if role == "draft" and isinstance(model, DecoderModel) and loaded.info.quant in ("nf4", "fp4"):
        # Left in bfloat16, the head alone would take as long as all the 4-bit layers below it.
        model.use_nf4_head()
    return model


def _open_gguf(
    folder: ModelFolder,
    facts: ConfigFacts,
    tokenizer: Any,
    settings: ModelSettings,
    role: Literal["target", "draft"],
    vocab_size: int,
    progress: ProgressListener,
) -> OpenedModel:
    from specgen.loading.llama_cpp import load_gguf, tokenizer_notice

    assert folder.gguf is not None
    assert facts.max_positions is not None
    num_threads = settings.backend.threads or physical_cores()
    loaded = load_gguf(
        folder.gguf.path,
        folder.gguf.header,
        settings,
        role=role,
        name=folder.name,
        num_threads=num_threads,
        on_stage=progress.stage,
    )
    notice = tokenizer_notice(tokenizer, loaded.weights) if role == "target" else None
    model = LlamaCppModel(loaded.weights, vocab_size, facts.max_positions, num_threads)
    return OpenedModel(model, loaded.info, (*loaded.notices, *([notice] if notice else [])))


@lru_cache(maxsize=1)
def physical_cores() -> int:
    """What torch would use: physical cores, or what OMP_NUM_THREADS says. Read once, before `share_threads`."""
    import torch

    return torch.get_num_threads()


def share_threads(*models: LanguageModel | None) -> None:
    """Leave the cores to llama.cpp where no torch model runs.

    torch's threads spin for a while after each sum over the vocabulary, just when llama.cpp's are to begin.
    """
    import torch

    cores = physical_cores()
    is_torch = any(model is not None and not isinstance(model, LlamaCppModel) for model in models)
    torch.set_num_threads(cores if is_torch else 1)
