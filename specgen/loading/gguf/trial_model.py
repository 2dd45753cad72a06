"""Writes a tiny Llama as a GGUF, with a matrix of each common type: a pass of it runs llama.cpp's kernels."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

NUM_TOKENS = 32
_WIDTH = 256
"""Of all matrices: the values of a block of the types with a K in their name."""
_NUM_LAYERS = 2
_TYPES = (
    *("Q4_K", "Q6_K", "Q5_K", "Q8_0", "Q4_0", "Q5_0", "Q3_K", "Q2_K"),
    *("Q4_1", "Q5_1", "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32"),
)
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_trial_model(path: Path) -> Path:
    """Writes the model to a file, with weights of zero; returns the path."""
    import gguf

    library: Any = gguf
    writer = library.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_NUM_LAYERS)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(_WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(NUM_TOKENS)
    writer.add_tokenizer_model("none")
    rows = {"token_embd": NUM_TOKENS, "output": NUM_TOKENS}
    rows |= {f"blk.{layer}.{name}": _WIDTH for layer in range(_NUM_LAYERS) for name in _MATRICES}
    for (name, number), kind in zip(rows.items(), cycle(_TYPES), strict=False):
        _add_zeros(writer, library, f"{name}.weight", number, kind)
    norms = [f"blk.{layer}.{name}" for layer in range(_NUM_LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in ("output_norm", *norms):
        _add_zeros(writer, library, f"{name}.weight", 1, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_zeros(writer: Any, library: Any, name: str, num_rows: int, kind: str) -> None:
    """Adds a matrix, or a vector if it has one row: of all types, bytes of 0 are values of 0."""
    import numpy

    block_values, block_bytes = library.GGML_QUANT_SIZES[library.GGMLQuantizationType[kind]]
    data = numpy.zeros((num_rows, _WIDTH // block_values * block_bytes), numpy.uint8)
    if kind in ("F32", "F16"):
        values = data.view(numpy.float32 if kind == "F32" else numpy.float16)
        writer.add_tensor(name, values[0] if num_rows == 1 else values)
    else:
        writer.add_tensor(name, data, raw_dtype=library.GGMLQuantizationType[kind])
