"""Estimates what a model takes on CUDA: next to its weights the cache at its capacity, logits, and recorded passes."""

from __future__ import annotations

import torch

from specgen.loading.resolved_model import ModelConfig
from specgen.loading.weight_sizes import needed_bytes
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.static.inputs import MAX_ROWS, capacity_for

GRAPH_BYTES = 100 * 2**20
"""Memory of a model's CUDA graphs and their pool: an estimate that was never measured."""
PLANNED_POSITIONS = 4096
"""Length of the text that a GPU is chosen for, or the model's window if that is less."""
USABLE = 0.9
"""Share of a GPU's free memory that is planned; the rest is for activations and the allocator."""


def cuda_bytes(config: ModelConfig, dtype: str, quant: str, *, is_draft: bool = False) -> int:
    """Returns the memory of a model on CUDA: weights, cache, logits, and an estimate for recorded passes."""
    positions = min(config.max_positions or PLANNED_POSITIONS, PLANNED_POSITIONS)
    size: int = getattr(torch, dtype).itemsize
    cache = cache_values(config) * cuda_capacity(positions) * size
    weights = needed_bytes(config, dtype, quant, is_draft=is_draft)
    return weights + cache + logits_bytes(config.vocab_rows or 0) + GRAPH_BYTES


def cuda_capacity(num_positions: int) -> int:
    """Returns the capacity of a cache on CUDA for a text of `num_positions`: recorded passes write padding after it."""
    return capacity_for(num_positions + MAX_ROWS)


def logits_bytes(vocab_size: int) -> int:
    """Returns the size of the float32 logits of the largest recorded pass."""
    return 4 * MAX_ROWS * vocab_size


def cache_values(config: ModelConfig) -> int:
    """Returns the keys and values per position; 0 if the config does not name its sizes as most do."""
    spec = config.decoder or (config.draft_head.spec if config.draft_head is not None else None)
    if spec is not None:
        return spec_cache_values(spec)
    values = config.values.get("text_config") or config.values
    heads, layers = values.get("num_attention_heads"), values.get("num_hidden_layers")
    if not (isinstance(heads, int) and isinstance(layers, int) and heads):
        return 0
    head_size = values.get("head_dim") or (values.get("hidden_size") or 0) // heads
    return int(2 * layers * (values.get("num_key_value_heads") or heads) * head_size)


def spec_cache_values(spec: DecoderSpec) -> int:
    """Returns the keys and values per position of a decoder."""
    return 2 * len(spec.layers) * spec.num_kv_heads * spec.head_size


def weight_matrix_bytes(num_rows: int, num_values: int, quant: str) -> int:
    """Returns the size of a quantized matrix with its float32 scales: one per row of int8, one per 64 4-bit values."""
    return num_values + 4 * num_rows if quant == "int8" else num_values // 2 + 4 * num_values // 64
