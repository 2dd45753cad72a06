"""A checked model folder and its placement in, an estimate of the memory it will take out. Reads no weights.

The model is built without memory by accelerate, so that the sizes are those of the real layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.doctor.results import MemoryPlan
from specgen.loading.config_check import ModelConfig
from specgen.loading.draft_head_folder import DraftHeadFolder
from specgen.loading.gguf.header import GgufHeader
from specgen.loading.placement import Placement
from specgen.loading.start.lean_import import empty_model
from specgen.models.decoder import ARCHITECTURES
from specgen.models.layers import FIRST_CAPACITY
from specgen.models.transformers_model import PREFILL_CHUNK

_BLOCK = 64
"""Values of a 4-bit weight that share a float32 scale."""
_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers whose products are done together, from a copy of their weights (`specgen.models.decoder`)."""


def plan_memory(folder: Path, facts: ModelConfig, placement: Placement, num_positions: int) -> MemoryPlan:
    """Estimate what a model takes.

    Args:
        folder: The model.
        facts: What `check_folder` said of it.
        placement: Where and how it would run.
        num_positions: Length of text to plan the cache for.
    """
    model = empty_model(folder)
    model.tie_weights()
    config = model.config.get_text_config()
    if placement.packed_dtype is not None:
        weights, largest = _narrow_weights(model, facts, 1 if placement.packed_dtype == "int8" else 2)
        # What is packed comes from the file's mapped pages, a layer at a time through float32.
        copies = facts.num_weight_bytes + 4 * largest
        return MemoryPlan(weights, copies, _cache_bytes(config, num_positions, 4), _activation_bytes(config, 4))
    size = placement.torch_dtype.itemsize
    is_quantized = placement.quant != "none" and facts.quant_method is None
    weights, joined = _weights(model, size, placement.quant if is_quantized else "none")
    if facts.quant_method is not None:
        weights, joined = facts.num_weight_bytes, 0
    copies = 0
    if placement.device == "cpu":
        copies = joined if type(model).__name__ in ARCHITECTURES else 0
        # Weights in the stored type are the file's own pages. Others are made from these, which stay mapped.
        converted = facts.dtype != placement.dtype
        if is_quantized:
            copies += facts.num_weight_bytes
        elif converted:
            copies = max(copies, facts.num_weight_bytes)
    return MemoryPlan(weights, copies, _cache_bytes(config, num_positions, size), _activation_bytes(config, size))


def plan_draft_head_memory(facts: DraftHeadFolder, placement: Placement, num_positions: int) -> MemoryPlan:
    """Estimate what a shallow draft takes beside its target, not packed.

    Args:
        facts: What `check_draft_head` said of it.
        placement: Where and how it would run.
        num_positions: Length of text to plan the cache for.
    """
    from transformers import AutoConfig

    auto_config: Any = AutoConfig
    config = auto_config.from_pretrained(facts.path, trust_remote_code=False, local_files_only=True)
    narrow = {"float16": 2, "int8": 1}.get(placement.packed_dtype or "")
    size = narrow or placement.torch_dtype.itemsize
    wide = 4 if narrow else size
    # A head in a form of its own is a copy of all its rows.
    rows = (facts.num_draft_ids or (facts.config.vocab_rows or 0 if narrow else 0)) * facts.hidden_size
    features = num_positions * facts.hidden_size if facts.kind == "features" else 0
    converted = facts.config.num_weight_bytes
    return MemoryPlan(
        (facts.config.num_parameters + rows) * size,
        converted,
        _cache_bytes(config, num_positions, wide) + features * wide,
        _activation_bytes(config, wide),
    )


def plan_gguf_memory(header: GgufHeader, facts: ModelConfig) -> MemoryPlan:
    """Estimate what a GGUF takes on llama.cpp: its cache is made for the whole window, in float16, at the start.

    Args:
        header: The file's.
        facts: What `gguf_config` said of it.
    """
    from specgen.models.llama_cpp import MAX_ROWS

    logits = MAX_ROWS * (facts.vocab_rows or 0) * 4
    return MemoryPlan(header.num_weight_bytes, 0, header.num_cache_values * 2 * (facts.max_positions or 0), logits)


def _weights(model: Any, size: int, quant: str) -> tuple[int, int]:
    """Bytes of the weights, and of those that are joined. Embeddings and the head keep the compute type."""
    import torch

    head = model.get_output_embeddings()
    quantized = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head and quant != "none"
    }
    whole = joined = 0
    for name, parameter in model.named_parameters():
        num_bytes = parameter.numel() * size
        if id(parameter) in quantized:
            num_bytes = _quantized_bytes(parameter, quant)
        whole += num_bytes
        joined += num_bytes if any(f".{layer}." in name for layer in _JOINED) else 0
    return whole, joined


def _narrow_weights(model: Any, facts: ModelConfig, size: int) -> tuple[int, int]:
    """Bytes of narrow layers and what stays beside them, and the number of values in the largest layer.

    A tied head is packed like any layer, and the embedding stays as stored; the rest is float32.
    """
    import torch

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    packed = {id(layer.weight) for layer in layers}
    embedding = model.get_input_embeddings().weight
    stored = getattr(torch, facts.dtype, torch.float32).itemsize
    rest = sum(p.numel() for p in model.parameters() if id(p) not in packed and p is not embedding)
    sizes = [layer.weight.numel() for layer in layers]
    return sum(sizes) * size + embedding.numel() * stored + rest * 4, max(sizes, default=0)


def _quantized_bytes(parameter: Any, quant: str) -> int:
    """With its scales: one float32 per row of 8-bit weights, one per block of 4-bit ones."""
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
    """Of a chunk of the prompt in one layer, and of the logits of the longest draft in float32, which are copied."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = PREFILL_CHUNK * (3 * inner + 8 * config.hidden_size) * max(size, 4)
    logits = 3 * 4 * (MAX_DRAFT_TOKENS // 4 + 1) * config.vocab_size
    return int(layer + logits)
