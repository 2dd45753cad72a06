"""Makes valid GGUF files of several architectures, each with something that is unusual: `valid_files()` yields them.

llama.cpp runs them all, so a backend that refuses one or writes another text has a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tests.llamacpp.variants import BOOL, F32, I32, STRING, U32, Model, Tensor, base, numbers, scalar

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "starcoder2")
HIDDEN, INNER, HEAD, QUERY, KEY, LAYERS = 32, 64, 8, 32, 16, 2
WINDOW = 4


def family(architecture: str) -> Model:
    """Returns a tiny random model with the tensors and entries of an architecture."""
    model = base(architecture)
    tensors = dict(model.tensors)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        if architecture in ("qwen2", "starcoder2"):
            sizes = {"attn_q": QUERY, "attn_k": KEY, "attn_v": KEY}
            if architecture == "starcoder2":
                sizes |= {"attn_output": HIDDEN, "ffn_up": INNER, "ffn_down": HIDDEN, "attn_norm": HIDDEN}
                sizes["ffn_norm"] = HIDDEN
                del tensors[f"{block}ffn_gate.weight"]
            tensors |= {f"{block}{name}.bias": drawn((size,), layer) for name, size in sizes.items()}
        if architecture in ("qwen3", "gemma3"):
            tensors |= {f"{block}attn_{name}_norm.weight": drawn((HEAD,), layer, 1.0) for name in "qk"}
        if architecture in ("gemma2", "gemma3"):
            names = "post_attention_norm", "post_ffw_norm"
            tensors |= {f"{block}{name}.weight": drawn((HIDDEN,), layer + 7, 1.0) for name in names}
        if architecture == "phi3":
            parts = [tensors.pop(f"{block}attn_{name}.weight") for name in "qkv"]
            tensors[f"{block}attn_qkv.weight"] = Tensor((QUERY + 2 * KEY, HIDDEN), b"".join(one.data for one in parts))
            up = tensors.pop(f"{block}ffn_gate.weight").data + tensors[f"{block}ffn_up.weight"].data
            tensors[f"{block}ffn_up.weight"] = Tensor((2 * INNER, HIDDEN), up)
    if architecture == "starcoder2":
        tensors["output_norm.bias"] = drawn((HIDDEN,), 3)
    pairs = dict(model.pairs)
    if architecture == "starcoder2":
        pairs[f"{architecture}.attention.layer_norm_epsilon"] = scalar(F32, 1e-5)
    if architecture in ("gemma2", "gemma3"):
        pairs[f"{architecture}.attention.sliding_window"] = scalar(U32, WINDOW)
        tensors.pop("output.weight")
    if architecture == "gemma2":
        pairs[f"{architecture}.attn_logit_softcapping"] = scalar(F32, 50.0)
        pairs[f"{architecture}.final_logit_softcapping"] = scalar(F32, 30.0)
    return replace(model, tensors=tensors, pairs=pairs)


def drawn(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> Tensor:
    """Returns random values that are exact in bfloat16."""
    values = np.random.default_rng(seed).standard_normal(shape) * 0.3 + mean
    return Tensor(shape, (values.astype("<f4").view("<u4") & 0xFFFF0000).tobytes())


def valid_files(architecture: str) -> Iterator[tuple[str, Model]]:
    """Yields files of an architecture by name."""
    model = family(architecture)
    yield "plain", model
    for key in ("general.name", "general.alignment", f"{architecture}.vocab_size", f"{architecture}.rope.freq_base"):
        yield f"without {key}", model.with_pair(key, None)
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        yield f"without {key}", model.with_pair(f"{architecture}.{key}", None)
    yield "without template", model.with_pair("tokenizer.chat_template", None)
    yield "base of rotation", model.with_pair(f"{architecture}.rope.freq_base", scalar(F32, 500.0))
    yield "large window", model.with_pair(f"{architecture}.context_length", scalar(U32, 2**20))
    yield "heads per layer", model.with_pair(f"{architecture}.attention.head_count_kv", numbers(U32, [2, 2]))
    yield "widths per layer", model.with_pair(f"{architecture}.feed_forward_length", numbers(I32, [INNER, INNER]))
    yield "unknown entries", model.with_pair("odd.key", numbers(F32, [1.0])).with_pair("odd.text", scalar(STRING, "x"))
    yield "reversed tensors", replace(model, tensors=dict(reversed(model.tensors.items())))
    aligned = replace(model, alignment=64)
    yield "aligned 64", aligned.with_pair("general.alignment", scalar(U32, 64))
    yield "begin token", model.with_pair("tokenizer.ggml.add_bos_token", scalar(BOOL, 1))
    if architecture != "phi3":
        yield "linear scaling", _scaled(model, architecture, "linear", 4.0)
        yield "yarn scaling", _scaled(model, architecture, "yarn", 4.0)
    yield "scaling of one", _scaled(model, architecture, "linear", 1.0)
    if "output.weight" in model.tensors:
        yield "tied", model.with_tensor("output.weight", None)
    for kind, dtype in ((0, "<f4"), (1, "<f2")):
        yield f"a layer of type {kind}", _stored(model, kind, dtype)


def _scaled(model: Model, architecture: str, kind: str, factor: float) -> Model:
    key = f"{architecture}.rope.scaling."
    scaled = model.with_pair(f"{key}type", scalar(STRING, kind)).with_pair(f"{key}factor", scalar(F32, factor))
    return scaled.with_pair(f"{key}original_context_length", scalar(U32, 32))


def _stored(model: Model, kind: int, dtype: str) -> Model:
    """Returns a model whose matrices of the first layer are stored in another type."""
    for name, held in model.tensors.items():
        if name.startswith("blk.0.ffn") and len(held.shape) == 2:
            data = np.frombuffer(held.data, "<f4").astype(dtype).tobytes()
            model = model.with_tensor(name, Tensor(held.shape, data, kind))
    return model
