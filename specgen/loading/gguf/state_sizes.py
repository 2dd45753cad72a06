"""Computes how many values the running states of a layer have, from the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping

_OTHER_KEYS = ("wkv.head_size", "kda.head_dim")
"""RWKV and Kimi Delta Attention count otherwise."""


def layer_state_values(pairs: Mapping[str, object], architecture: str) -> int | None:
    """Returns the float32 values that one layer with running states keeps for a text; None if unknown.

    Source: `n_embd_r` and `n_embd_s` in llama.cpp's llama-hparams.cpp, for LFM2, Mamba 1 and 2, and gated delta rules.
    """

    def size(key: str) -> int:
        value = pairs.get(f"{architecture}.{key}")
        return value if isinstance(value, int) and 0 < value < 2**31 else 0

    if any(size(key) for key in _OTHER_KEYS):
        return None
    if width := size("shortconv.l_cache"):
        return size("embedding_length") * (width - 1)
    kernel, inner, state = (size(f"ssm.{key}") for key in ("conv_kernel", "inner_size", "state_size"))
    if not (kernel and inner and state):
        return None
    return (kernel - 1) * (inner + 2 * size("ssm.group_count") * state) + state * inner
