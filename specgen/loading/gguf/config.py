"""Reads from a GGUF header what config.json holds for other models."""

from __future__ import annotations

from typing import Literal

from specgen.core.errors import SettingsError
from specgen.core.settings import BackendSettings
from specgen.loading.gguf.header import GgufHeader
from specgen.loading.model_config import ModelConfig

DEFAULT_CONTEXT = 8192
"""Positions of llama.cpp's cache by default: its memory is allocated at once, and windows of 131,072 are common."""


def gguf_config(
    header: GgufHeader, settings: BackendSettings, name: str, role: Literal["target", "draft"]
) -> ModelConfig:
    """Returns what a GGUF header says of a model. `max_positions` is the size of the cache it will get.

    Raises:
        SettingsError: `--context-size` is larger than the target's window. A draft gets as much as it has.
    """
    window, requested = header.context_length, settings.context_size
    if requested is not None and window is not None and requested > window:
        if role == "target":
            raise SettingsError(
                f"--context-size {requested} is more than the {window} positions of {name}", f"use at most {window}"
            )
        requested = window
    return ModelConfig(
        model_type=header.architecture,
        vocab_rows=header.vocab_rows,
        max_positions=requested or min(window or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
        quant_method=None,
        dtype=header.quantization,
        num_parameters=header.num_parameters,
        num_weight_bytes=header.num_weight_bytes,
    )
