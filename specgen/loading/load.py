"""Loads the weights of a resolved model into what runs it: our decoder, transformers, llama.cpp or a draft head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.engine.contract import LanguageModel
from specgen.loading.draft_head import load_draft_head
from specgen.loading.resolved_model import ResolvedModel
from specgen.loading.weights import load_weights
from specgen.models.llama_cpp import LlamaCppModel
from specgen.storage.cost_store import CostStore


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Args:
        model: Computes logits.
        info: What really runs.
        notices: What the user should know, one line each.
    """

    model: LanguageModel
    info: ModelInfo
    notices: tuple[str, ...] = ()


def load(
    resolved: ResolvedModel,
    num_tokens: int,
    progress: ProgressListener = SILENT,
    *,
    target: LanguageModel | None = None,
) -> LoadedModel:
    """Reads the weights of a model.

    Args:
        resolved: The model.
        num_tokens: Its logits are cut to this width.
        progress: Receives the progress of loading.
        target: The loaded target; required for a draft head, which uses its embeddings.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: The device is missing or has too little memory.
    """
    if resolved.draft_head is not None:
        assert target is not None, "a draft head is loaded after its target"
        progress.stage(f"loading draft {resolved.name}")
        model, info = load_draft_head(resolved.draft_head, resolved.name, resolved.settings.quant, target, num_tokens)
        return LoadedModel(model, info)
    if resolved.gguf is not None:
        return _load_llama_cpp(resolved, num_tokens, progress)
    weights = load_weights(resolved, num_tokens, progress, CostStore())
    return LoadedModel(weights.model, weights.info, weights.notices)


def _load_llama_cpp(resolved: ResolvedModel, num_tokens: int, progress: ProgressListener) -> LoadedModel:
    from specgen.loading.llama_cpp import load_gguf, tokenizer_notice

    context_size = resolved.config.max_positions
    assert context_size is not None, "gguf_config sets a size"
    num_threads = resolved.settings.backend.threads or default_num_threads()
    loaded = load_gguf(resolved, num_threads, progress)
    notice = tokenizer_notice(resolved.tokenizer, loaded.weights) if resolved.role == "target" else None
    model = LlamaCppModel(loaded.weights, num_tokens, context_size, num_threads)
    return LoadedModel(model, loaded.info, (*loaded.notices, *([notice] if notice else [])))


@lru_cache(maxsize=1)
def default_num_threads() -> int:
    """Returns torch's number of threads at start: the physical cores, or OMP_NUM_THREADS."""
    return torch.get_num_threads()


def limit_torch_threads(*models: LanguageModel | None) -> None:
    """Leaves all cores to llama.cpp if no model here runs on torch.

    torch's threads spin for a while after each sum over the vocabulary, just when llama.cpp's threads start.
    """
    num_threads = default_num_threads()
    uses_torch = any(model is not None and not isinstance(model, LlamaCppModel) for model in models)
    torch.set_num_threads(num_threads if uses_torch else 1)
