"""Tiny transformers models as GGUF files, float32: the same weights for both backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specgen.core.results import ModelInfo
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.llama_cpp import load_gguf
from specgen.loading.resolve import check_gguf
from specgen.loading.resolved_model import GgufFile, ModelFiles, ResolvedModel
from specgen.models.llama_cpp import LlamaCppModel
from tests.fakes import tiny_model

LLAMA_CPP = ModelSettings("", backend=BackendSettings("llama.cpp", threads=1))


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a GGUF; `kinds` are 1 normal, 3 control, 4 user-defined, 5 unused."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    bos: int
    eos: int
    template: str | None = None


def letters(count: int) -> Vocabulary:
    """Three control tokens, then single characters, for a model whose text does not matter."""
    characters = [chr(code) for code in range(ord("!"), ord("!") + count - 5)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", "Ċ", *characters]
    return Vocabulary(tokens, [3, 3, 3] + [1] * (count - 3), ["A B"], bos=1, eos=2)


def toy_vocabulary(tokenizer: Any, width: int) -> Vocabulary:
    """The tokens of `tests.toys.toy_tokenizer`, padded to the rows of its model, as converters do."""
    import json

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["id"]: 3 if token["special"] else 4 for token in raw["added_tokens"]}
    tokens = [names.get(index, f"[PAD{index}]") for index in range(width)]
    kinds = [added.get(index, 1 if index in names else 5) for index in range(width)]
    merges = [" ".join(merge) for merge in raw["model"]["merges"]]
    return Vocabulary(
        tokens, kinds, merges, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template or None
    )


def write_gguf(path: Path, model: Any, vocabulary: Vocabulary, *, skip: str | None = None) -> Path:
    """Writes a Llama or Qwen2 model as a GGUF, as llama.cpp's converter does.

    Args:
        path: The file.
        model: In float32.
        vocabulary: As many tokens as the model has rows.
        skip: A tensor to leave out.
    """
    import gguf as library

    config = model.config
    kind = config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = library.GGUFWriter(path, kind)
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_add_bos_token(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
    for name, tensor in _tensors(model, kind):
        if name != skip:
            writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _tensors(model: Any, kind: str) -> list[tuple[str, Any]]:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = []
    for full_name, tensor in model.state_dict().items():
        module, _, part = full_name.rpartition(".")
        if module in _OUTER:
            found.append((f"{_OUTER[module]}.{part}", tensor))
            continue
        layer, _, inner = module.removeprefix("model.layers.").partition(".")
        name = _LAYER[inner]
        if kind == "llama" and name in heads:
            # llama.cpp rotates neighbouring values, transformers values that are half a head apart.
            tensor = tensor.view(heads[name], 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        found.append((f"blk.{layer}.{name}.{part}", tensor))
    return found


@dataclass(frozen=True)
class LoadedGguf:
    """A GGUF in memory, without a cache."""

    weights: Any
    info: ModelInfo


def load(path: Path, settings: ModelSettings = LLAMA_CPP) -> LoadedGguf:
    files = ModelFiles(path.parent, path.stem, from_gguf=True, gguf=GgufFile(path, scan_gguf(path)))
    # As a draft: a target's tokenizer is compared with the file's.
    config = check_gguf(files, settings, "draft")
    loaded = load_gguf(ResolvedModel(files, settings, "draft", config, format="gguf"), num_tokens=1)
    return LoadedGguf(loaded.model._weights, loaded.info)  # type: ignore[attr-defined]


@cache
def tiny_weights(folder: Path, kind: str = "llama", seed: int = 0) -> Any:
    """Loads `tests.fakes.tiny_model` with llama.cpp."""
    path = folder / f"{kind}-{seed}.gguf"
    return load(write_gguf(path, tiny_model(kind, seed), letters(96))).weights


def tiny_llama_cpp(folder: Path, kind: str = "llama", seed: int = 0, vocab_size: int = 96) -> LlamaCppModel:
    """Returns an empty cache with `tiny_weights`."""
    return LlamaCppModel(tiny_weights(folder, kind, seed), vocab_size, 512, 1)
