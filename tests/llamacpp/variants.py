"""Makes GGUF files from one tiny model with one thing changed: `variants()` yields them by name.

The weights are exact in bfloat16, so that both backends compute with the same numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tests.loading.builders import CHAT_TEMPLATE, array, gguf, pair, tensor, text

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
LAYOUTS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B"}
LAYOUTS |= {U64: "<Q", I64: "<q", F64: "<d"}
LETTERS = [chr(code) for code in range(ord("!"), ord("!") + 60)]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *LETTERS]

Value = tuple[int, bytes]
"""Type of a value, and its bytes."""


def scalar(kind: int, value: float | str | bytes) -> Value:
    if isinstance(value, str | bytes):
        return kind, text(value)
    return kind, struct.pack(LAYOUTS[kind], value)


def strings(values: Sequence[str | bytes]) -> Value:
    return ARRAY, array(STRING, len(values), b"".join(map(text, values)))


def numbers(kind: int, values: Sequence[float]) -> Value:
    return ARRAY, array(kind, len(values), b"".join(struct.pack(LAYOUTS[kind], value) for value in values))


@dataclass(frozen=True)
class Tensor:
    """Shape as in numpy; bytes as in the file."""

    shape: tuple[int, ...]
    data: bytes
    kind: int = 0


@dataclass(frozen=True)
class Model:
    """What a file holds."""

    pairs: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    alignment: int = 32
    options: Mapping[str, int] = field(default_factory=dict)

    def with_pair(self, key: str, value: Value | None) -> Model:
        pairs = {name: held for name, held in self.pairs.items() if name != key or value is not None}
        return replace(self, pairs=pairs if value is None else {**pairs, key: value})

    def with_tensor(self, name: str, value: Tensor | None, new_name: str | None = None) -> Model:
        tensors = {new_name or key if key == name else key: held for key, held in self.tensors.items()}
        if value is None:
            del tensors[name]
        else:
            tensors[new_name or name] = value
        return replace(self, tensors=tensors)

    def file(self) -> bytes:
        table, data = [], b""
        for name, one in self.tensors.items():
            table.append(tensor(name, one.shape[::-1], one.kind, len(data)))
            data += one.data + b"\0" * (-len(one.data) % self.alignment)
        pairs = [pair(key, kind, value) for key, (kind, value) in self.pairs.items()]
        return gguf(pairs, table, data=data, alignment=self.alignment, **self.options)


def base(architecture: str = "llama") -> Model:
    sizes = {
        "context_length": 128,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "vocab_size": len(TOKENS),
    }
    pairs = {
        "general.architecture": scalar(STRING, architecture),
        "general.name": scalar(STRING, "Tiny"),
        "general.alignment": scalar(U32, 32),
        **{f"{architecture}.{key}": scalar(U32, value) for key, value in sizes.items()},
        f"{architecture}.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
        f"{architecture}.rope.freq_base": scalar(F32, 10000.0),
        "tokenizer.ggml.model": scalar(STRING, "gpt2"),
        "tokenizer.ggml.pre": scalar(STRING, "gpt-2"),
        "tokenizer.ggml.tokens": strings(TOKENS),
        "tokenizer.ggml.token_type": numbers(I32, [3] * 3 + [1] * (len(TOKENS) - 3)),
        "tokenizer.ggml.merges": strings(["A B"]),
        "tokenizer.ggml.bos_token_id": scalar(U32, 1),
        "tokenizer.ggml.eos_token_id": scalar(U32, 2),
        "tokenizer.ggml.add_bos_token": scalar(BOOL, 0),
        "tokenizer.chat_template": scalar(STRING, CHAT_TEMPLATE),
    }
    return Model(pairs, _tensors(architecture))


def _tensors(architecture: str) -> dict[str, Tensor]:
    random = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, 32), "output_norm.weight": (32,)}
    shapes["output.weight"] = (64, 32)
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (32,), f"{block}ffn_norm.weight": (32,)}
        shapes |= {f"{block}attn_q.weight": (32, 32), f"{block}attn_k.weight": (16, 32)}
        shapes |= {f"{block}attn_v.weight": (16, 32), f"{block}attn_output.weight": (32, 32)}
        shapes |= {f"{block}ffn_gate.weight": (64, 32), f"{block}ffn_up.weight": (64, 32)}
        shapes[f"{block}ffn_down.weight"] = (32, 64)
    found = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape) * 0.4 + ("norm" in name)
        exact = (values.astype("<f4").view("<u4") & 0xFFFF0000).view("<f4")
        found[name] = Tensor(shape, exact.tobytes())
    return found


NAN, INFINITY = float("nan"), float("inf")
WRONG_TYPES: dict[str, Value] = {
    "string": scalar(STRING, "x"),
    "empty": scalar(STRING, ""),
    "bool": scalar(BOOL, 1),
    "u8": scalar(U8, 4),
    "i32": scalar(I32, 4),
    "u64": scalar(U64, 4),
    "f32": scalar(F32, 4.0),
    "f64": scalar(F64, 4.0),
    "array": numbers(U32, [4, 4]),
    "short-array": numbers(U32, [4]),
    "empty-array": numbers(U32, []),
    "string-array": strings(["x"]),
}
INTEGERS = {"0": 0, "1": 1, "3": 3, "7": 7, "2^31": 2**31, "max": 2**32 - 1}
FLOATS = {"0": 0.0, "-1": -1.0, "tiny": 1e-30, "huge": 1e30, "nan": NAN, "inf": INFINITY, "-inf": -INFINITY}


def variants() -> Iterator[tuple[str, Model]]:
    model = base()
    yield "base", model
    for key, (kind, _) in model.pairs.items():
        yield f"{key}=missing", model.with_pair(key, None)
        for name, value in WRONG_TYPES.items():
            yield f"{key}={name}", model.with_pair(key, value)
        edges: Mapping[str, float] = {U32: INTEGERS, F32: FLOATS}.get(kind, {})
        for name, number in edges.items():
            yield f"{key}={name}", model.with_pair(key, scalar(kind, number))
        if kind == U32:
            yield f"{key}=-1", model.with_pair(key, scalar(I32, -1))
            yield f"{key}=2^63", model.with_pair(key, scalar(U64, 2**63))
        if kind == STRING:
            for name, string in STRINGS.items():
                yield f"{key}={name}", model.with_pair(key, scalar(STRING, string))
    for key, values in OPTIONAL.items():
        for name, value in values.items():
            yield f"{key}={name}", model.with_pair(key, value)
    yield from _tokens(model)
    yield from _tables(model)


STRINGS: dict[str, str | bytes] = {
    "unknown": "unknown",
    "nul": "a\0b",
    "control": "\x1b[31m",
    "not-utf8": b"\xff\xfe",
    "surrogate": b"\xed\xa0\x80",
    "long": "x" * 300_000,
    "braces": "{{ 1 }}{% raw %}",
}
_F = {name: scalar(F32, value) for name, value in FLOATS.items()}
_I = {name: scalar(U32, value) for name, value in INTEGERS.items()}
_IDS = {**_I, "2": scalar(U32, 2), "63": scalar(U32, 63), "64": scalar(U32, 64), "-1": scalar(I32, -1)}
_IDS |= {"-2": scalar(I32, -2), "string": scalar(STRING, "x"), "i64": scalar(I64, 2), "f32": scalar(F32, 2.0)}
_BOOLS = {"false": scalar(BOOL, 0), "true": scalar(BOOL, 1), "2": scalar(BOOL, 2), "u32": scalar(U32, 1)}
_BOOLS |= {"string": scalar(STRING, "true")}
_NAMES = {name: scalar(STRING, name) for name in ("none", "linear", "yarn", "longrope", "dynamic", "")}
OPTIONAL: dict[str, Mapping[str, Value]] = {
    "llama.rope.scaling.type": {**_NAMES, "u32": scalar(U32, 1)},
    "llama.rope.scaling.factor": _F,
    "llama.rope.scale_linear": _F,
    "llama.rope.scaling.original_context_length": _I,
    "llama.rope.scaling.attn_factor": _F,
    "llama.rope.scaling.finetuned": _BOOLS,
    "llama.expert_count": _I,
    "llama.expert_used_count": _I,
    "llama.attention.sliding_window": _I,
    "llama.attention.causal": _BOOLS,
    "llama.attention.scale": _F,
    "llama.attention.clamp_kqv": _F,
    "llama.attention.max_alibi_bias": _F,
    "llama.attention.layer_norm_epsilon": _F,
    "llama.attn_logit_softcapping": _F,
    "llama.final_logit_softcapping": _F,
    "llama.logit_scale": _F,
    "llama.embedding_scale": _F,
    "llama.residual_scale": _F,
    "llama.pooling_type": _I,
    "llama.use_parallel_residual": _BOOLS,
    "llama.tensor_data_layout": {"odd": scalar(STRING, "Meta AI original pth")},
    "llama.leading_dense_block_count": _I,
    "llama.attention.head_count": {
        "per-layer": numbers(U32, [4, 4]),
        "differing": numbers(U32, [4, 2]),
        "long": numbers(U32, [4, 4, 4]),
        "i32": numbers(I32, [4, 4]),
        "floats": numbers(F32, [4, 4]),
    },
    "llama.attention.head_count_kv": {
        "per-layer": numbers(U32, [2, 2]),
        "differing": numbers(U32, [2, 4]),
        "zero": numbers(U32, [2, 0]),
        "2": scalar(U32, 2),
        "4": scalar(U32, 4),
    },
    "llama.feed_forward_length": {"per-layer": numbers(U32, [64, 64]), "differing": numbers(U32, [64, 32])},
    "llama.rope.dimension_count": {"4": scalar(U32, 4), "16": scalar(U32, 16), "2": scalar(U32, 2)},
    "llama.rope.dimension_sections": {"four": numbers(I32, [2, 2, 2, 2])},
    "general.type": {
        "model": scalar(STRING, "model"),
        "adapter": scalar(STRING, "adapter"),
        "mmproj": scalar(STRING, "mmproj"),
    },
    "general.file_type": _I,
    "general.quantization_version": _I,
    "general.alignment": {"8": scalar(U32, 8), "64": scalar(U32, 64), "31": scalar(U32, 31), "u64": scalar(U64, 32)},
    "split.count": {
        **_I,
        "u16-0": scalar(U16, 0),
        "u16-1": scalar(U16, 1),
        "u16-2": scalar(U16, 2),
        "string": scalar(STRING, "x"),
    },
    "split.no": {"u16-1": scalar(U16, 1), "max": scalar(U16, 65535)},
    **{
        f"tokenizer.ggml.{name}_token_id": _IDS
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "cls", "fim_pre")
    },
    **{f"tokenizer.ggml.add_{name}": _BOOLS for name in ("bos_token", "eos_token", "sep_token", "space_prefix")},
    "tokenizer.ggml.remove_extra_whitespaces": _BOOLS,
    "tokenizer.ggml.token_type_count": _I,
    "tokenizer.ggml.precompiled_charsmap": {
        "short": numbers(U8, [1, 2, 3]),
        "empty": numbers(U8, []),
        "strings": strings(["x"]),
    },
    "tokenizer.ggml.scores": {
        "right": numbers(F32, [0.0] * 64),
        "short": numbers(F32, [0.0] * 63),
        "nan": numbers(F32, [NAN] * 64),
        "ints": numbers(I32, [0] * 64),
    },
    "tokenizer.ggml.pre": {
        name: scalar(STRING, name) for name in ("default", "llama-bpe", "qwen2", "smollm", "bert-bge", "chatglm-bpe")
    },
    "tokenizer.ggml.model": {
        name: scalar(STRING, name) for name in ("llama", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab")
    },
    "tokenizer.chat_template.tool": {"odd": scalar(STRING, "{{ x }")},
    "tokenizer.chat_templates": {"names": strings(["tool"])},
    "odd key \x1b[31m\n": {"a": scalar(U32, 1)},
    "x" * 256: {"a": scalar(U32, 1)},
    "x" * 65535: {"a": scalar(U32, 1)},
    "": {"a": scalar(U32, 1)},
    "llama.": {"a": scalar(U32, 1)},
}


def _tokens(model: Model) -> Iterator[tuple[str, Model]]:
    key = "tokenizer.ggml.tokens"
    odd: dict[str, Sequence[str | bytes]] = {
        "empty-string": [*TOKENS[:10], "", *TOKENS[11:]],
        "twice": [*TOKENS[:10], TOKENS[11], *TOKENS[11:]],
        "nul": [*TOKENS[:10], "a\0b", *TOKENS[11:]],
        "only-nul": [*TOKENS[:10], "\0", *TOKENS[11:]],
        "not-utf8": [*TOKENS[:10], b"\xff\xfe", *TOKENS[11:]],
        "surrogate": [*TOKENS[:10], b"\xed\xa0\x80", *TOKENS[11:]],
        "escape": [*TOKENS[:10], "\x1b[31m", *TOKENS[11:]],
        "space": [*TOKENS[:10], "a b", *TOKENS[11:]],
        "emoji": [*TOKENS[:10], "🙂", *TOKENS[11:]],
        "long": [*TOKENS[:10], "x" * 60_000, *TOKENS[11:]],
        "too-long": [*TOKENS[:10], "x" * 70_000, *TOKENS[11:]],
        "fewer": TOKENS[:60],
        "more": [*TOKENS, "one", "two"],
        "none": [],
        "one": TOKENS[:1],
        "all-equal": ["x"] * 64,
    }
    for name, tokens in odd.items():
        types = numbers(I32, ([3] * 3 + [1] * len(tokens))[: len(tokens)])
        yield f"{key}:{name}", model.with_pair(key, strings(tokens)).with_pair("tokenizer.ggml.token_type", types)
    for name in (
        "</s>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<EOT>",
        "<|eom_id|>",
        "[EOS]",
        "<|end|>",
        "<|return|>",
        "<eos>",
    ):
        tokens = [*TOKENS[:10], name, *TOKENS[11:]]
        for kind in (1, 3, 4):
            types = numbers(I32, [3] * 3 + [1] * 7 + [kind] + [1] * 53)
            changed = model.with_pair(key, strings(tokens)).with_pair("tokenizer.ggml.token_type", types)
            for written in ("row", "plain"):
                held = changed if written == "plain" else _that_writes(changed, 10)
                yield f"end-by-text {name} type {kind} {written}", held
    types_key = "tokenizer.ggml.token_type"
    for name, value in {
        "all-0": numbers(I32, [0] * 64),
        "all-normal": numbers(I32, [1] * 64),
        "all-control": numbers(I32, [3] * 64),
        "all-user": numbers(I32, [4] * 64),
        "all-unused": numbers(I32, [5] * 64),
        "all-byte": numbers(I32, [6] * 64),
        "99": numbers(I32, [99] * 64),
        "-1": numbers(I32, [-1] * 64),
        "u32": numbers(U32, [1] * 64),
        "short": numbers(I32, [1] * 63),
        "u8": numbers(U8, [1] * 64),
    }.items():
        yield f"{types_key}:{name}", model.with_pair(types_key, value)
    merges: dict[str, Sequence[str | bytes]] = {
        "none": [],
        "no-space": ["AB"],
        "two-spaces": ["A B C"],
        "leading-space": [" A B"],
        "unknown": ["A ~"],
        "gives-no-token": ["A C"],
        "empty": [""],
        "blank": [" "],
        "twice": ["A B", "A B"],
        "not-utf8": [b"\xff \xfe"],
        "nul": ["A\0 B"],
        "long": ["A " + "B" * 60_000],
    }
    for name, one in merges.items():
        yield f"tokenizer.ggml.merges:{name}", model.with_pair("tokenizer.ggml.merges", strings(one))


def _that_writes(model: Model, token: int) -> Model:
    """The same model with an output row that wins for some texts."""
    held = model.tensors["output.weight"]
    values = np.frombuffer(held.data, "<f4").reshape(held.shape).copy()
    values[token] = values[TOKENS.index("T")] * 2
    return model.with_tensor("output.weight", replace(held, data=values.tobytes()))


def _tables(model: Model) -> Iterator[tuple[str, Model]]:
    name = "blk.0.ffn_up.weight"
    held = model.tensors[name]
    for kind in (*range(44), 97, 137, 999, 1001, 2**31, 2**32 - 1):
        if kind != 0:
            yield f"type {kind}", model.with_tensor(name, replace(held, kind=kind))
    half = np.frombuffer(held.data, "<f4").astype("<f2").tobytes()
    bf16 = (np.frombuffer(held.data, "<u4") >> 16).astype("<u2").tobytes()
    yield "type 1 F16", model.with_tensor(name, replace(held, kind=1, data=half))
    yield "type 30 BF16", model.with_tensor(name, replace(held, kind=30, data=bf16))
    f64 = np.frombuffer(held.data, "<f4").astype("<f8").tobytes()
    yield "type 28 F64", model.with_tensor(name, replace(held, kind=28, data=f64))
    i32 = np.frombuffer(held.data, "<f4").astype("<i4").tobytes()
    yield "type 26 I32", model.with_tensor(name, replace(held, kind=26, data=i32))
    for kind, block in ((2, 18), (3, 20), (6, 22), (7, 24), (8, 34), (20, 18), (39, 17)):
        random = np.random.default_rng(kind)
        blocks = random.integers(0, 255, (64, block), dtype=np.uint8)
        blocks[:, 0:2] = np.frombuffer(np.float16(0.02).tobytes(), np.uint8)
        if kind in (3, 7):
            blocks[:, 2:4] = np.frombuffer(np.float16(-0.1).tobytes(), np.uint8)
        if kind == 39:
            blocks[:, 0] = 120
        yield f"quantized {kind}", model.with_tensor(name, replace(held, kind=kind, data=blocks.tobytes()))
    for missing in model.tensors:
        if not missing.startswith("blk.1."):
            yield f"without {missing}", model.with_tensor(missing, None)
    zeros = bytes(4 * 64)
    for extra, shape in {
        "rope_freqs.weight": (4,),
        "blk.0.attn_q.bias": (32,),
        "blk.0.attn_output.bias": (32,),
        "blk.0.ffn_up.bias": (64,),
        "blk.0.attn_q_norm.weight": (8,),
        "blk.2.attn_norm.weight": (32,),
        "unknown": (8,),
        "": (8,),
        "x" * 63: (8,),
        "x" * 64: (8,),
        "odd \x1b[31m\n": (8,),
        "output.bias": (64,),
        "rope_factors_long.weight": (4,),
        "blk.0.ffn_gate_inp.weight": (2, 32),
        "token_types.weight": (2, 32),
    }.items():
        yield (
            f"with {extra[:70]!r} {len(extra)}",
            replace(model, tensors={**model.tensors, extra: Tensor(shape, zeros)}),
        )
    shapes: dict[str, tuple[int, ...]] = {
        "flat": (64 * 32,),
        "turned": (32, 64),
        "three": (64, 32, 1),
        "four": (1, 1, 64, 32),
        "zero": (0, 32),
        "smaller": (32, 32),
    }
    for label in ("blk.0.ffn_up.weight", "token_embd.weight", "output.weight"):
        for shape_name, shape in shapes.items():
            yield f"{label} {shape_name}", model.with_tensor(label, replace(model.tensors[label], shape=shape))
    yield "norm of one", model.with_tensor("output_norm.weight", Tensor((1,), bytes(32)))
    for label in ("token_embd.weight", "output_norm.weight", "blk.0.ffn_up.weight"):
        old = model.tensors[label]
        for what, value in (("nan", NAN), ("inf", INFINITY), ("zero", 0.0)):
            data = np.full(old.shape, value, "<f4").tobytes()
            yield f"{label} all {what}", model.with_tensor(label, replace(old, data=data))
    for alignment in (1, 2, 4, 8, 16, 24, 64, 4096):
        changed = replace(model, alignment=alignment)
        yield f"aligned {alignment}", changed.with_pair("general.alignment", scalar(U32, alignment))
    for version in (0, 1, 2, 4):
        yield f"version {version}", replace(model, options={"version": version})
