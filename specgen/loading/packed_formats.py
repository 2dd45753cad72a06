"""Says which weights of a model would run on our own kernels on this machine. Compiles nothing."""

from __future__ import annotations

from typing import Literal

from specgen.core.settings import ModelSettings
from specgen.loading.resolved_model import ModelConfig
from specgen.models.float_rows import INPUTS_UNIT
from specgen.models.packing import PackedFormat, may_run_kernels

MAX_UNPACKED = 0.1
"""Largest share of the weights in other modules than linear layers and embeddings for which these are packed."""


def may_pack_nf4(settings: ModelSettings, config: ModelConfig, device: str) -> bool:
    """Returns whether nf4 would run on our own kernel.

    It packs linear layers; what else a model has would be stored in float32. Experts are such, and may be most of it.
    """
    modules = config.modules
    is_linear = modules is None or modules.conv1d + modules.rest <= MAX_UNPACKED * modules.total
    is_plain = config.quant_method is None and settings.dtype in ("auto", "float32")
    return device == "cpu" and is_plain and is_linear and may_run_kernels()


def packed_floats(
    settings: ModelSettings, config: ModelConfig, device: str, *, has_bfloat16: bool
) -> Literal["bfloat16", "float16"] | None:
    """Returns the type of 16-bit weights that would run on our own kernel as they are stored, in specgen's decoder.

    Args:
        has_bfloat16: The CPU has bfloat16 products. Then float16 is converted: torch reads prompts faster in bfloat16.
    """
    is_plain = config.quant_method is None and settings.dtype == "auto"
    has_sizes = config.widths is not None and not any(width % INPUTS_UNIT for width in config.widths)
    if device != "cpu" or not (config.decoder is not None and is_plain and has_sizes and may_run_kernels()):
        return None
    if config.dtype == "bfloat16":
        return "bfloat16"
    return "float16" if config.dtype == "float16" and not has_bfloat16 else None


def packed_head(layers: PackedFormat, *, is_draft: bool) -> PackedFormat:
    """Returns the format of the head of packed layers: int8 for a target in nf4, as its rounding changes the text most.

    Args:
        is_draft: It is a draft on specgen's own decoder; on transformers, drafts have the heads of targets.
    """
    return "int8" if layers == "nf4" and not is_draft else layers
