"""Estimates how much memory a model needs and a device has, in bytes, for decisions and messages."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from specgen.core import cgroups
from specgen.core.errors import MemoryShortageError
from specgen.core.units import format_size
from specgen.loading.resolved_model import ModelConfig
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.static.inputs import MAX_ROWS, capacity_for

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_QUANT_BYTES = {"int8": 1.15, "nf4": 0.65, "fp4": 0.65}
"""Bytes per parameter, including the scales, and the embeddings, which stay in the compute type."""

GRAPH_BYTES = 100 * 2**20
"""Of a model's CUDA graphs and their memory pool: an estimate that was never measured."""
PLANNED_POSITIONS = 4096
"""Length of the text that a GPU is chosen for, or the model's window if that is less."""
USABLE = 0.9
"""Share of a GPU's free memory that is planned; the rest is for activations and the allocator."""


def needed_bytes(config: ModelConfig, dtype: str, quant: str) -> int:
    """Returns the memory of the weights, without cache and activations."""
    if config.quant_method is not None:
        return config.num_weight_bytes
    per_parameter = _QUANT_BYTES.get(quant) or _BYTES.get(dtype, 4.0)
    return int(config.num_parameters * per_parameter)


def cuda_bytes(config: ModelConfig, dtype: str, quant: str) -> int:
    """Returns the memory of a model on CUDA: weights, cache, logits, and an estimate for recorded passes."""
    positions = min(config.max_positions or PLANNED_POSITIONS, PLANNED_POSITIONS)
    size: int = getattr(torch, dtype).itemsize
    cache = cache_values(config) * cuda_capacity(positions) * size
    return needed_bytes(config, dtype, quant) + cache + logits_bytes(config.vocab_rows or 0) + GRAPH_BYTES


def cuda_capacity(num_positions: int) -> int:
    """Returns the capacity of a cache on CUDA for a text of so many tokens: recorded passes write padding after it."""
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


def free_bytes(device: str) -> int | None:
    """Returns the free memory of a device, with what torch keeps of freed tensors; None if unknown."""
    if device.startswith("cuda"):
        where = torch.device(device)
        free, _ = torch.cuda.mem_get_info(where)
        return int(free) + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    if device != "cpu":
        return None
    known = [number for number in (_meminfo("MemAvailable"), cgroups.free_memory()) if number is not None]
    return min(known) if known else None


def total_bytes() -> int | None:
    """Returns the main memory, or the container's limit if that is less; None if unknown."""
    known = [number for number in (_meminfo("MemTotal"), cgroups.memory_limit()) if number is not None]
    return min(known) if known else None


def shortage(what: str, device: str, needed: int, quant: str) -> MemoryShortageError:
    """Returns the error for a model that does not fit; its hint names the most effective fix first."""
    free = free_bytes(device)
    have = "" if free is None else f", {format_size(free)} free"
    fixes = [] if quant != "none" else ["--quant nf4"]
    fixes += ["a smaller model", "no draft (--draft none)", "a shorter context"]
    return MemoryShortageError(
        f"not enough memory on {device} for {what}: about {format_size(needed)} needed{have}", f"try {', '.join(fixes)}"
    )


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    if key == "MemAvailable" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
