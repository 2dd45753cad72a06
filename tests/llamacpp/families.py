"""Makes valid GGUF files of several architectures, each with something that is unusual: `valid_files()` yields them.

llama.cpp runs them all, so a backend that refuses one or writes another text has a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tests.llamacpp.hybrids import ARCHITECTURES as HYBRIDS
from tests.llamacpp.hybrids import hybrid_parts
from tests.llamacpp.variants import ARRAY, BOOL, F32, I32, STRING, U32, Model, Tensor, base, numbers, scalar

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "starcoder2")
EDGED = (*ARCHITECTURES[1:], "olmo2", "granite", "smollm3", "stablelm", *HYBRIDS)
"""Architectures whose entries are changed to their edges; those of Llama are in `variants`."""
HIDDEN, INNER, HEAD, QUERY, KEY, LAYERS = 32, 64, 8, 32, 16, 2
WINDOW = 4


def family(architecture: str) -> Model:
    """Returns a tiny random model with the tensors and entries of an architecture."""
    model = base(architecture)
    tensors = dict(model.tensors)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        if architecture == "olmo2":
            del tensors[f"{block}attn_norm.weight"], tensors[f"{block}ffn_norm.weight"]
            sizes = {"attn_q_norm": QUERY, "attn_k_norm": KEY, "post_attention_norm": HIDDEN, "post_ffw_norm": HIDDEN}
            tensors |= {f"{block}{name}.weight": drawn((size,), layer, 1.0) for name, size in sizes.items()}
        if architecture == "stablelm":
            tensors |= {f"{block}{name}.bias": drawn((HIDDEN,), layer) for name in ("attn_norm", "ffn_norm")}
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
    if architecture in ("starcoder2", "stablelm"):
        tensors["output_norm.bias"] = drawn((HIDDEN,), 3)
    pairs = dict(model.pairs)
    if architecture == "granite":
        scales = {"logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 3.0, "attention.scale": 0.25}
        pairs |= {f"{architecture}.{key}": scalar(F32, value) for key, value in scales.items()}
    if architecture == "stablelm":
        pairs[f"{architecture}.use_parallel_residual"] = scalar(BOOL, 0)
    if architecture in ("starcoder2", "stablelm"):
        pairs[f"{architecture}.attention.layer_norm_epsilon"] = scalar(F32, 1e-5)
    if architecture in ("gemma2", "gemma3"):
        pairs[f"{architecture}.attention.sliding_window"] = scalar(U32, WINDOW)
        tensors.pop("output.weight")
    if architecture == "gemma2":
        pairs[f"{architecture}.attn_logit_softcapping"] = scalar(F32, 50.0)
        pairs[f"{architecture}.final_logit_softcapping"] = scalar(F32, 30.0)
    return replace(model, tensors=tensors, pairs=pairs)


def hybrid(architecture: str) -> Model:
    """Returns a tiny random model with running states."""
    shapes, sizes = hybrid_parts(architecture)
    model = base(architecture)
    mine = {key: value for key, value in model.pairs.items() if not key.startswith(f"{architecture}.")}
    random = np.random.default_rng(5)
    tensors = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape) * 0.4 + ("norm" in name)
        tensors[name] = _exact(-np.abs(values) if name.endswith("ssm_a") else values)
    return replace(model, pairs={**mine, **sizes}, tensors=tensors)


def _exact(values: np.ndarray[Any, Any]) -> Tensor:
    return Tensor(values.shape, (values.astype("<f4").view("<u4") & 0xFFFF0000).tobytes())


def edges(architecture: str) -> Iterator[tuple[str, Model]]:
    """Yields files with one entry of the architecture at an edge, one tensor less, or one of another shape."""
    model = hybrid(architecture) if architecture in HYBRIDS else family(architecture)
    for key, (kind, _) in model.pairs.items():
        if not key.startswith(f"{architecture}."):
            continue
        yield f"{key}=missing", model.with_pair(key, None)
        yield f"{key}=string", model.with_pair(key, scalar(STRING, "x"))
        values: tuple[float, ...] = (0, 3, 2**32 - 1) if kind == U32 else ()
        values = (0.0, -1.0, float("nan"), 1e30) if kind == F32 else values
        for value in values:
            yield f"{key}={value}", model.with_pair(key, scalar(kind, value))
        if kind == ARRAY:
            yield f"{key}=short", model.with_pair(key, numbers(I32, [2]))
            yield f"{key}=scalar", model.with_pair(key, scalar(U32, 2))
    for name, held in model.tensors.items():
        if not name.startswith(tuple(f"blk.{layer}." for layer in range(1, 9))):
            yield f"without {name}", model.with_tensor(name, None)
            yield f"{name} turned", model.with_tensor(name, replace(held, shape=(*held.shape[::-1], 1)))
            flat = np.full(held.shape, np.nan, "<f4").tobytes()
            yield f"{name} all nan", model.with_tensor(name, replace(held, data=flat))


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
