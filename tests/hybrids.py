"""Makes tiny random models with running states, of the real architectures."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fakes import TINY
from tests.toys import toy_tokenizer

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 16}

HYBRIDS: dict[str, dict[str, Any]] = {
    "Lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "Lfm2Moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        **_EXPERTS,
    },
    "Qwen3_5": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], **_DELTA},
    "Qwen3_5Moe": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], **_DELTA, **_SHARED},
    "Qwen3Next": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], **_DELTA, **_SHARED},
    "OlmoHybrid": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        **_DELTA,
        "linear_num_key_heads": 4,
    },
    "GraniteMoeHybrid": {
        "num_hidden_layers": 2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
        **MAMBA,
    },
    "FalconH1": {"num_hidden_layers": 1, "mamba_d_ssm": 64, "head_dim": 8, **MAMBA},
    "Bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1], **MAMBA},
    "Mamba2": {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
}
"""Architectures that specgen runs, by the first part of their classes' names."""

LIMITED: dict[str, dict[str, Any]] = {
    "NemotronH": {
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "head_dim": 8,
    },
    "Zamba2": {
        "num_hidden_layers": 2,
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "num_mem_blocks": 1,
    },
}
"""Architectures whose Mamba layers limit the time step in passes over several tokens only."""

RESTARTING: dict[str, dict[str, Any]] = {
    "Mamba": {"num_hidden_layers": 2, "state_size": 8},
    "FalconMamba": {"num_hidden_layers": 2, "state_size": 8},
    "Jamba": {
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
}
"""Architectures whose passes over several tokens don't continue from the states in the cache."""


@cache
def hybrid_model(kind: str, vocab_size: int = 96, seed: int = 0) -> Any:
    """Makes a random float32 model with running states; a forward takes some milliseconds."""
    torch.manual_seed(seed)
    # Small vocabularies lack the usual ids of special tokens.
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    own = {**HYBRIDS, **LIMITED, **RESTARTING}[kind]
    if "layers_block_type" in own and "num_hidden_layers" not in own:
        sizes = {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    else:
        sizes = dict(TINY)
    config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    config = config_class(**{**sizes, **special, **own, "vocab_size": vocab_size})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def save_hybrid(kind: str, folder: Path) -> Path:
    """Saves such a model with the tests' tokenizer."""
    tokenizer = toy_tokenizer()
    hybrid_model(kind, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
