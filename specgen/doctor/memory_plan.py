"""Estimates the memory of a model from its config and placement, without reading its weights.

accelerate builds the model without allocating it, so the sizes are those of the actual layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.doctor.results import MemoryPlan
from specgen.loading.draft_head_folder import DraftHeadFolder
from specgen.loading.gguf.header import GgufHeader
from specgen.loading.model_config import ModelConfig
from specgen.loading.placement import Placement
from specgen.loading.start.lean_import import empty_model
from specgen.models.decoder import ARCHITECTURES
from specgen.models.layers import FIRST_CAPACITY
from specgen.models.llama_cpp import MAX_ROWS
from specgen.models.transformers_model import PREFILL_CHUNK

_BLOCK = 64
"""Values of a 4-bit weight that share a float32 scale."""
_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers that the decoder joins, in a copy of their weights (`specgen.models.decoder`)."""


def plan_memory(folder: Path, checked: ModelConfig, placement: Placement, num_positions: int) -> MemoryPlan:
    """Estimates the memory of a model.

    Args:
        folder: The model.
        checked: Its checked config.
        placement: Where and how it would run.
        num_positions: Text length to plan the cache for.
    """
    model = empty_model(folder)
    model.tie_weights()
    config = model.config.get_text_config()
    if placement.packed_dtype is not None:
        weights, largest = _packed_weights(model, checked, 1 if placement.packed_dtype == "int8" else 2)
        # Packing reads the mapped pages of the file and converts one layer at a time to float32.
        copies = checked.num_weight_bytes + 4 * largest
        return MemoryPlan(weights, copies, _cache_bytes(config, num_positions, 4), _activation_bytes(config, 4))
    size = placement.torch_dtype.itemsize
    is_quantized = placement.quant != "none" and checked.quant_method is None
    weights, joined = _weights(model, size, placement.quant if is_quantized else "none")
    if checked.quant_method is not None:
        weights, joined = checked.num_weight_bytes, 0
    copies = 0
    if placement.device == "cpu":
        copies = joined if type(model).__name__ in ARCHITECTURES else 0
        # Weights in the stored type are pages of the file. Others are converted from these pages, which stay mapped.
        converted = checked.dtype != placement.dtype
        if is_quantized:
            copies += checked.num_weight_bytes
        elif converted:
            copies = max(copies, checked.num_weight_bytes)
    return MemoryPlan(weights, copies, _cache_bytes(config, num_positions, size), _activation_bytes(config, size))


def plan_draft_head_memory(draft_head: DraftHeadFolder, placement: Placement, num_positions: int) -> MemoryPlan:
    """Estimates the memory of a draft head, without packing, in addition to its target.

    Args:
        draft_head: Its checked folder.
        placement: Where and how it would run.
        num_positions: Text length to plan the cache for.
    """
    from transformers import AutoConfig

    auto_config: Any = AutoConfig
    config = auto_config.from_pretrained(draft_head.path, trust_remote_code=False, local_files_only=True)
    packed_size = {"float16": 2, "int8": 1}.get(placement.packed_dtype or "")
    size = packed_size or placement.torch_dtype.itemsize
    compute_size = 4 if packed_size else size
    # A packed head is a copy of all rows.
    rows = (
        draft_head.num_draft_ids or (draft_head.config.vocab_rows or 0 if packed_size else 0)
    ) * draft_head.hidden_size
    features = num_positions * draft_head.hidden_size if draft_head.kind == "features" else 0
    converted = draft_head.config.num_weight_bytes
    return MemoryPlan(
        (draft_head.config.num_parameters + rows) * size,
        converted,
        _cache_bytes(config, num_positions, compute_size) + features * compute_size,
        _activation_bytes(config, compute_size),
    )


def plan_gguf_memory(header: GgufHeader, checked: ModelConfig) -> MemoryPlan:
    """Estimates the memory of a GGUF on llama.cpp, which allocates a float16 cache for the whole window at the start.

    Args:
        header: Header of the file.
        checked: Its checked config.
    """
    logits = MAX_ROWS * (checked.vocab_rows or 0) * 4
    return MemoryPlan(header.num_weight_bytes, 0, header.num_cache_values * 2 * (checked.max_positions or 0), logits)


def _weights(model: Any, size: int, quant: str) -> tuple[int, int]:
    """Returns the bytes of all weights and of the joined ones. Embeddings and the head keep the compute type."""
    import torch

    head = model.get_output_embeddings()
    quantized = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head and quant != "none"
    }
    total = joined = 0
    for name, parameter in model.named_parameters():
        num_bytes = parameter.numel() * size
        if id(parameter) in quantized:
            num_bytes = _quantized_bytes(parameter, quant)
        total += num_bytes
        joined += num_bytes if any(f".{layer}." in name for layer in _JOINED) else 0
    return total, joined


def _packed_weights(model: Any, checked: ModelConfig, size: int) -> tuple[int, int]:
    """Returns the bytes of packed layers and all other weights, and the number of values in the largest layer.

    A tied head is packed like any layer, the embedding keeps its stored type, and the rest is float32.
    """
    import torch

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    packed = {id(layer.weight) for layer in layers}
    embedding = model.get_input_embeddings().weight
    stored = getattr(torch, checked.dtype, torch.float32).itemsize
    rest = sum(p.numel() for p in model.parameters() if id(p) not in packed and p is not embedding)
    sizes = [layer.weight.numel() for layer in layers]
    return sum(sizes) * size + embedding.numel() * stored + rest * 4, max(sizes, default=0)


def _quantized_bytes(parameter: Any, quant: str) -> int:
    """Returns the bytes with scales: a float32 per row of 8-bit weights, or per block of 4-bit weights."""
    num_values = int(parameter.numel())
    return num_values + 4 * int(parameter.shape[0]) if quant == "int8" else num_values // 2 + 4 * num_values // _BLOCK


def _cache_bytes(config: Any, num_positions: int, size: int) -> int:
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    capacity = FIRST_CAPACITY
    while capacity < num_positions:
        capacity *= 2
    return int(2 * config.num_hidden_layers * num_kv_heads * head_size * capacity * size)


def _activation_bytes(config: Any, size: int) -> int:
    """Returns the bytes of a prompt chunk in one layer, and of the copied float32 logits of the longest draft."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = PREFILL_CHUNK * (3 * inner + 8 * config.hidden_size) * max(size, 4)
    logits = 3 * 4 * (MAX_DRAFT_TOKENS // 4 + 1) * config.vocab_size
    return int(layer + logits)
