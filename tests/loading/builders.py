"""Tiny models, tokenizers and GGUF files for tests, built from nothing in milliseconds."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from specgen.core.errors import SpecgenError
from specgen.core.settings import ModelSettings
from specgen.loading import placement
from specgen.loading.config_check import check_folder
from specgen.loading.resolved_model import ModelFiles, ResolvedModel, Role

VOCAB = 64
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


class RecordedProgress:
    """A `ProgressListener` that records stages and sizes."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.sizes: list[tuple[int, int | None]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def bytes(self, done: int, total: int | None) -> None:
        self.sizes.append((done, total))


def words(count: int = VOCAB) -> list[str]:
    """Token strings: two special ones, then letters and made-up words."""
    return ["<|im_start|>", "<|im_end|>", "<unk>", *[f"w{index}" for index in range(count - 3)]]


def make_tokenizer(tokens: Sequence[str] | None = None, **options: Any) -> Any:
    """A word-level tokenizer over the given strings, id by position."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokens = list(tokens or words())
    raw = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<unk>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def make_model(seed: int = 0, **changes: Any) -> Any:
    """A Llama of about 25,000 parameters, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()


def make_folder(folder: Path, *, tokens: Sequence[str] | None = None, **changes: Any) -> Path:
    """A whole model folder: config, weights, tokenizer, generation config. Each kind is made once, then copied."""
    key = repr((tokens, sorted(changes.items())))
    if key not in _FILES:
        with tempfile.TemporaryDirectory() as made:
            make_model(**changes).save_pretrained(made)
            make_tokenizer(tokens).save_pretrained(made)
            _FILES[key] = {path.name: path.read_bytes() for path in Path(made).iterdir()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _FILES[key].items():
        (folder / name).write_bytes(data)
    return folder


_FILES: dict[str, dict[str, bytes]] = {}
"""The files of the folders made so far, by what was asked for; a few hundred KiB."""


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            value.pop(key, None)
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of model.safetensors in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fails(kind: type[SpecgenError], call: Callable[[], object], *parts: str) -> SpecgenError:
    """Assert that a call raises exactly this error, with each part in its message or hint."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    for part in parts:
        assert part in f"{error.message} | {error.hint}"
    return error


def cpu_with(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Pretends that the processor has these instructions."""
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset(flags))


def resolved(
    folder: Path, settings: ModelSettings, *, role: Role = "target", from_gguf: bool = False, name: str = ""
) -> ResolvedModel:
    """A folder whose config is checked, without its tokenizer."""
    files = ModelFiles(folder, name or settings.name or folder.name, from_gguf)
    return ResolvedModel(files, settings, role, check_folder(folder, settings.backend.name))


# --- GGUF -----------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    pairs: Sequence[bytes] | None = None,
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    data: bytes = b"",
    alignment: int = 32,
) -> bytes:
    """A GGUF from its parts; the counts can lie."""
    pairs = [pair("general.architecture", 8, text("llama"))] if pairs is None else pairs
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data


def make_gguf(
    path: Path,
    *,
    skip: str | None = None,
    tokens: Sequence[str] | None = None,
    merges: Sequence[str] = ("A B",),
    pre: str = "default",
) -> Path:
    """A tiny Llama as a GGUF that transformers can unpack, float32, with a byte-level tokenizer.

    Args:
        path: The file.
        skip: Name of a tensor to leave out.
        tokens: Token strings; default: some letters.
        merges: Of the tokenizer.
        pre: Name of its pre-tokenizer.
    """
    import gguf as library
    import numpy as np

    letters = [chr(code) for code in range(ord("!"), ord("!") + VOCAB - 4)]
    tokens = list(tokens or ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *letters])
    writer = library.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,), "output.weight": (len(tokens), 32)}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (32,), f"{block}ffn_norm.weight": (32,)}
        shapes |= {f"{block}attn_q.weight": (32, 32), f"{block}attn_output.weight": (32, 32)}
        shapes |= {f"{block}attn_k.weight": (16, 32), f"{block}attn_v.weight": (16, 32)}
        shapes |= {f"{block}ffn_gate.weight": (64, 32), f"{block}ffn_up.weight": (64, 32)}
        shapes |= {f"{block}ffn_down.weight": (32, 64)}
    for name, shape in shapes.items():
        if name != skip:
            writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
