"""Loads the weights of a resolved model. Its format decides which loader reads it."""

from __future__ import annotations

from specgen.core.progress import SILENT, ProgressListener
from specgen.engine.contract import LanguageModel
from specgen.loading.draft_head import load_draft_head
from specgen.loading.gpus import beside_target
from specgen.loading.llama_cpp import load_gguf
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.loading.weights import load_weights
from specgen.storage.cost_store import CostStore


def load(
    resolved: ResolvedModel,
    num_tokens: int,
    progress: ProgressListener = SILENT,
    *,
    target: LanguageModel | None = None,
) -> LoadedModel:
    """Reads the weights of a model.

    Args:
        num_tokens: Its logits are cut to this width.
        target: The loaded target; required for a draft head, which uses its embeddings.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: The device is missing or has too little memory.
    """
    if resolved.format == "gguf":
        return load_gguf(resolved, num_tokens, progress)
    if resolved.format == "draft head":
        return load_draft_head(resolved, num_tokens, progress, target)
    if resolved.format == "mtp":
        from specgen.loading.mtp_weights import load_mtp  # it imports transformers, as its target has done already

        return load_mtp(resolved, num_tokens, progress, target)
    return load_weights(beside_target(resolved, target), num_tokens, progress, CostStore())
