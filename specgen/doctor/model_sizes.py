"""Counts the values of a model: of its matrices, its cache and its running states. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from specgen.core.errors import library_failures
from specgen.doctor.results import CROP, RollbackPlan
from specgen.loading.cuda_memory import cache_values, spec_cache_values
from specgen.loading.module_sizes import empty_model
from specgen.loading.resolved_model import ModelConfig
from specgen.loading.weight_sizes import decoder_sizes
from specgen.models.checkpoints import MAX_COPIES
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.hybrid_support import refuse_unfit_states
from specgen.models.running_states import StateSizes, state_sizes
from specgen.models.tensor_names import layer_matrices


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of values of a model.

    Args:
        layers: Rows and values of each matrix in the layers.
        embedding: Values of the embedding.
        head: Values of the head; 0 if it is the embedding.
        rest: Norms and biases.
        cache: Values of keys and values per position.
        hidden: Width of the model.
        inner: Width of the feed-forward.
        vocab: Rows of the logits.
        states: Bytes of the running states.
        rollback: The copies of these.
    """

    layers: tuple[tuple[int, int], ...]
    embedding: int
    head: int
    rest: int
    cache: int
    hidden: int
    inner: int
    vocab: int
    states: int = 0
    rollback: RollbackPlan = CROP


def own_sizes(spec: DecoderSpec) -> ModelSizes:
    """Returns the sizes of specgen's decoder."""
    sizes = decoder_sizes(spec)
    return ModelSizes(
        layers=tuple((shape[0], prod(shape)) for shape in layer_matrices(spec)),
        embedding=sizes.embedding,
        head=0 if sizes.is_tied else sizes.head,
        rest=sizes.rest,
        cache=spec_cache_values(spec),
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        vocab=spec.vocab_size,
    )


def mtp_sizes(config: ModelConfig) -> ModelSizes:
    """Returns the sizes of a head in a checkpoint, as far as they are not known from the headers of its files."""
    hidden = config.values["hidden_size"]
    inner = config.values.get("intermediate_size") or 4 * hidden
    return ModelSizes((), 0, 0, 0, cache=cache_values(config), hidden=hidden, inner=inner, vocab=config.vocab_rows or 0)


def transformers_sizes(folder: Path, num_value_bytes: int) -> ModelSizes:
    """Returns the sizes of a model that transformers builds, without memory for its weights.

    Raises:
        LoadError: Rejected tokens can't be removed from its cache.
    """
    import torch

    model = empty_model(folder)
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    head_weight = None if head is None or head.weight is embedding else head.weight
    apart = {id(embedding), id(head_weight)}
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in apart
    ]
    apart |= {id(weight) for weight in matrices}
    rest = sum(int(parameter.numel()) for parameter in model.parameters() if id(parameter) not in apart)
    states, rollback = _states(model, num_value_bytes)  # last: it converts the model
    return ModelSizes(
        layers=tuple((int(weight.shape[0]), int(weight.numel())) for weight in matrices),
        embedding=int(embedding.numel()),
        head=0 if head_weight is None else int(head_weight.numel()),
        rest=rest,
        cache=_cache_values(config, config.num_hidden_layers if states is None else states.num_attention_layers),
        hidden=config.hidden_size,
        inner=_widest(getattr(config, "intermediate_size", None)) or 4 * config.hidden_size,
        vocab=config.vocab_size,
        states=0 if states is None else states.num_bytes,
        rollback=rollback,
    )


def _cache_values(config: Any, num_layers: int) -> int:
    """Returns the values of keys and values per position."""
    if not num_layers:
        return 0
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return int(2 * num_layers * num_kv_heads * head_size)


def _states(model: Any, num_value_bytes: int) -> tuple[StateSizes | None, RollbackPlan]:
    """Returns the sizes of a model's running states and the plan of their copies.

    Raises:
        LoadError: As for `TransformersModel`.
    """
    refuse_unfit_states(model)
    try:
        sizes = state_sizes(model, num_value_bytes)
    except library_failures():
        # Installed kernels, as those of flash-linear-attention, run on a GPU only.
        return None, RollbackPlan("unknown")
    if sizes is None:
        return None, CROP
    kind: Literal["crop", "snapshot_and_replay"] = "snapshot_and_replay" if sizes.is_recurrent else "crop"
    return sizes, RollbackPlan(kind, MAX_COPIES, sizes.num_bytes)


def _widest(size: int | list[int] | None) -> int | None:
    return max(size) if isinstance(size, list) else size
