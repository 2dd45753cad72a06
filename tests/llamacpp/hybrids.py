"""Tiny random GGUF files of architectures with running states: LFM2, Mamba-2, Qwen3.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB, WIDTH, INNER = 64, 32, 64
LARGE_VOCAB = 248_320
_FFN = {"ffn_gate.weight": (INNER, WIDTH), "ffn_up.weight": (INNER, WIDTH), "ffn_down.weight": (WIDTH, INNER)}
_ATTENTION = {
    "attn_q.weight": (WIDTH, WIDTH),
    "attn_k.weight": (16, WIDTH),
    "attn_v.weight": (16, WIDTH),
    "attn_output.weight": (WIDTH, WIDTH),
    "attn_q_norm.weight": (8,),
    "attn_k_norm.weight": (8,),
}
Shapes = dict[str, tuple[int, ...]]
Describe = Callable[[Any], Shapes]
"""Writes the metadata of an architecture; returns the shapes of the tensors in addition to the embedding."""


def make_hybrid_gguf(path: Path, architecture: str) -> Path:
    """Writes a float32 model of three layers, with a byte-level tokenizer of 64 tokens."""
    return _write(path, architecture, 3, (VOCAB, WIDTH), _ARCHITECTURES[architecture])


def make_large_qwen35(path: Path) -> Path:
    """Writes a float16 model of the shapes of Qwen3.5 0.8B: 1.4 GiB."""
    sizes = Qwen35Sizes(num_layers=24, interval=4, width=1024, inner=3584, heads=16, size=128, head_size=256)

    def describe(writer: Any) -> Shapes:
        return {name: shape for name, shape in _qwen35(writer, sizes).items() if name != "output.weight"}

    return _write(path, "qwen35", 24, (LARGE_VOCAB, sizes.width), describe, is_half=True)


def _write(
    path: Path,
    architecture: str,
    num_layers: int,
    embedding: tuple[int, int],
    describe: Describe,
    *,
    is_half: bool = False,
) -> Path:
    import gguf
    import numpy as np

    letters = [chr(code) for code in range(ord("!"), ord("!") + VOCAB - 4)]
    others = [f"<{index}>" for index in range(VOCAB, embedding[0])]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *letters, *others]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(embedding[1])
    writer.add_block_count(num_layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    shapes: Shapes = {"token_embd.weight": embedding, **describe(writer)}
    for name, shape in shapes.items():
        is_product = len(shape) == 2 and "ssm_conv" not in name
        values = random.standard_normal(shape, np.float32) * (0.03 if is_half else 1)
        values = values.astype(np.float16 if is_half and is_product else np.float32)
        if name.endswith("ssm_a"):  # a decay, so that the states stay finite
            values = -np.abs(values)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hybrid_parts(architecture: str) -> tuple[Shapes, dict[str, tuple[int, bytes]]]:
    """Returns the shapes of a model's tensors, and its own entries as types and bytes of values."""
    import gguf

    writer = gguf.GGUFWriter(None, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    tensors: Shapes = {"token_embd.weight": (VOCAB, WIDTH), **_ARCHITECTURES[architecture](writer)}
    entries = {}
    for key, held in writer.kv_data[0].items():
        if key.startswith(f"{architecture}."):
            packed = writer._pack_val(held.value, held.type, add_vtype=True, sub_type=held.sub_type)
            entries[key] = int(held.type), packed[4:]  # after the type
    return tensors, entries


def _blocks(layers: list[Shapes]) -> Shapes:
    return {f"blk.{index}.{name}": shape for index, layer in enumerate(layers) for name, shape in layer.items()}


def _lfm2(writer: Any) -> Shapes:
    """Convolutions, with attention in the second layer."""
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv([0, 2, 0])
    writer.add_rope_freq_base(10000.0)
    writer.add_shortconv_l_cache(3)
    norms: Shapes = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
    convolution: Shapes = {
        "shortconv.conv.weight": (WIDTH, 3),
        "shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    layers = [{**norms, **_FFN, **kind} for kind in (convolution, _ATTENTION, convolution)]
    return {"token_embd_norm.weight": (WIDTH,), **_blocks(layers)}


def _mamba2(writer: Any) -> Shapes:
    """A convolution and a recurrence in each layer, no attention."""
    state, heads = 16, 4
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(1)
    layer: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * INNER + 2 * state + heads, WIDTH),
        "ssm_conv1d.weight": (INNER + 2 * state, 4),
        "ssm_conv1d.bias": (INNER + 2 * state,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads, 1),
        "ssm_d": (heads, 1),
        "ssm_norm.weight": (1, INNER),
        "ssm_out.weight": (WIDTH, INNER),
    }
    return {"output_norm.weight": (WIDTH,), "output.weight": (VOCAB, WIDTH), **_blocks([layer] * 3)}


@dataclass(frozen=True)
class Qwen35Sizes:
    """Sizes of a Qwen3.5.

    Args:
        interval: Each layer of this number has attention; the others have a gated delta rule.
        heads: Of the delta rule, `size` wide each.
        head_size: Of the attention, which has 4 heads and 2 of keys and values.
    """

    num_layers: int = 3
    interval: int = 3
    width: int = WIDTH
    inner: int = INNER
    heads: int = 2
    size: int = 16
    head_size: int = 8


def _qwen35(writer: Any, sizes: Qwen35Sizes | None = None) -> Shapes:
    """Two gated delta rules, then gated attention."""
    s = sizes or Qwen35Sizes()
    width, delta_width, rotated = s.width, s.heads * s.size, s.head_size if s.head_size < 16 else s.head_size // 4
    writer.add_feed_forward_length(s.inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(s.head_size)
    writer.add_value_length(s.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(rotated)
    writer.add_rope_dimension_sections([rotated // 4, rotated // 8, rotated // 8, 0])
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(s.size)
    writer.add_ssm_group_count(s.heads)
    writer.add_ssm_time_step_rank(s.heads)
    writer.add_ssm_inner_size(delta_width)
    writer.add_full_attention_interval(s.interval)
    common: Shapes = {
        "attn_norm.weight": (width,),
        "post_attention_norm.weight": (width,),
        "ffn_gate.weight": (s.inner, width),
        "ffn_up.weight": (s.inner, width),
        "ffn_down.weight": (width, s.inner),
    }
    delta: Shapes = {
        "attn_qkv.weight": (3 * delta_width, width),
        "attn_gate.weight": (delta_width, width),
        "ssm_conv1d.weight": (3 * delta_width, 4),
        "ssm_dt.bias": (s.heads,),
        "ssm_a": (s.heads,),
        "ssm_beta.weight": (s.heads, width),
        "ssm_alpha.weight": (s.heads, width),
        "ssm_norm.weight": (s.size,),
        "ssm_out.weight": (width, delta_width),
    }
    attention: Shapes = {
        "attn_q.weight": (2 * 4 * s.head_size, width),  # with a gate
        "attn_k.weight": (2 * s.head_size, width),
        "attn_v.weight": (2 * s.head_size, width),
        "attn_output.weight": (width, 4 * s.head_size),
        "attn_q_norm.weight": (s.head_size,),
        "attn_k_norm.weight": (s.head_size,),
    }
    kinds = (attention if index % s.interval == s.interval - 1 else delta for index in range(s.num_layers))
    layers = [{**common, **kind} for kind in kinds]
    return {"output_norm.weight": (width,), "output.weight": (VOCAB, width), **_blocks(layers)}


_ARCHITECTURES: dict[str, Describe] = {"lfm2": _lfm2, "mamba2": _mamba2, "qwen35": _qwen35}
ARCHITECTURES = tuple(_ARCHITECTURES)
