"""Tiny random GGUF files of architectures with running states: LFM2, Mamba-2, Qwen3.5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB, WIDTH, INNER = 64, 32, 64
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


def make_hybrid_gguf(path: Path, architecture: str) -> Path:
    """Writes a float32 model of three layers, with a byte-level tokenizer of 64 tokens."""
    import gguf
    import numpy as np

    letters = [chr(code) for code in range(ord("!"), ord("!") + VOCAB - 4)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *letters]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCAB - 3))
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    shapes: Shapes = {"token_embd.weight": (VOCAB, WIDTH), **_ARCHITECTURES[architecture](writer)}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if name.endswith("ssm_a"):  # a decay, so that the states stay finite
            values = -np.abs(values)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


def _qwen35(writer: Any) -> Shapes:
    """Two gated delta rules, then gated attention."""
    heads, size = 2, 16
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_rope_dimension_sections([2, 1, 1, 0])
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(size)
    writer.add_ssm_group_count(heads)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(heads * size)
    writer.add_full_attention_interval(3)
    common: Shapes = {"attn_norm.weight": (WIDTH,), "post_attention_norm.weight": (WIDTH,), **_FFN}
    delta: Shapes = {
        "attn_qkv.weight": (3 * heads * size, WIDTH),
        "attn_gate.weight": (heads * size, WIDTH),
        "ssm_conv1d.weight": (3 * heads * size, 4),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_beta.weight": (heads, WIDTH),
        "ssm_alpha.weight": (heads, WIDTH),
        "ssm_norm.weight": (size,),
        "ssm_out.weight": (WIDTH, heads * size),
    }
    attention: Shapes = {**_ATTENTION, "attn_q.weight": (2 * WIDTH, WIDTH)}  # with a gate
    layers = [{**common, **kind} for kind in (delta, delta, attention)]
    return {"output_norm.weight": (WIDTH,), "output.weight": (VOCAB, WIDTH), **_blocks(layers)}


_ARCHITECTURES: dict[str, Callable[[Any], Shapes]] = {"lfm2": _lfm2, "mamba2": _mamba2, "qwen35": _qwen35}
ARCHITECTURES = tuple(_ARCHITECTURES)
