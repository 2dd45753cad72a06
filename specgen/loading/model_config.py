"""Defines `ModelConfig`: what is known of a model before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.decoder_spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's config, and what the headers of its weight files say.

    Args:
        model_type: transformers' name of the architecture, `llama`.
        vocab_rows: Rows of the logits; may exceed the tokenizer's table. None if the config does not name it.
        max_positions: The context window in tokens; None if the config does not name it.
        quant_method: How the checkpoint is quantized (`gptq`, `bitsandbytes`); None if it is not.
        dtype: Type of most stored weights, `bfloat16`.
        num_parameters: Values in the weight files; tied ones count once.
        num_weight_bytes: Bytes of the weight files.
        widths_fit_blocks: Whether the layers' widths are multiples of 64, the block of 4-bit weights.
        widths: Hidden and intermediate size, if the config names them.
        weight_files: Names of the safetensors files.
        decoder: Describes the model to specgen's decoder; None if it runs on transformers.
        unsupported: The key of the config that specgen's decoder does not support; empty if it supports all.
    """

    model_type: str
    vocab_rows: int | None
    max_positions: int | None
    quant_method: str | None
    dtype: str
    num_parameters: int
    num_weight_bytes: int
    widths_fit_blocks: bool = True
    widths: tuple[int, int] | None = None
    weight_files: tuple[str, ...] = ()
    decoder: DecoderSpec | None = None
    unsupported: str = ""
