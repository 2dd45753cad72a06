"""Makes the config.json of a GGUF file, for the families that specgen's decoder runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from specgen.core.errors import ModelFileError
from specgen.loading.config_reader import UnsupportedConfig, is_number
from specgen.loading.gguf.rotary import rope_scaling

if TYPE_CHECKING:
    from specgen.loading.gguf.contents import GgufContents


@dataclass(frozen=True, slots=True)
class Family:
    """How a GGUF architecture maps to a family of checkpoints.

    Args:
        keys: Further keys of config.json, by their keys in the GGUF, without the architecture.
        extra: Further entries of config.json.
        permutes_rotary: Rows of queries and keys are stored in pairs, for another rotary kernel.
        norm_offset: Was added to the norms.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    permutes_rotary: bool = False
    norm_offset: float = 0.0


_COMMON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
REQUIRED = ("block_count", "feed_forward_length", "embedding_length", "attention.head_count")
"""Entries without which transformers would make a model of its default size: 7 billion random parameters."""
CHANGES_THE_OUTPUT = (
    *("attention.scale", "attention.clamp_kqv"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping", "logit_scale"),
    *("final_logit_softcapping", "embedding_scale", "residual_scale", "expert_count"),
)
"""Keys, without the architecture's name, that change the output. A file that sets one is refused unless its family
reads it."""
FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", {"attention.key_length": "head_dim"}, permutes_rotary=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {"attention.key_length": "head_dim"}),
    "phi3": Family("phi3", "Phi3ForCausalLM", {"attention.sliding_window": "sliding_window"}),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "attention.key_length": "head_dim",
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        {"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {"attention.key_length": "head_dim", "attention.sliding_window": "sliding_window"},
        {"rope_local_base_freq": 10_000.0, "hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
}


def config_of(contents: GgufContents, family: Family, divisors: Sequence[float] = ()) -> dict[str, Any]:
    """Returns the config.json of a file.

    Args:
        divisors: The values of its tensor `rope_freqs`, if it has one.

    Raises:
        UnsupportedConfig: The file describes something that specgen's decoder can't run.
        ModelFileError: Entries contradict each other.
    """
    architecture = str(_field(contents, "general.architecture"))
    found: dict[str, Any] = {}
    for key, name in {**_COMMON, **family.keys}.items():
        value = _field(contents, f"{architecture}.{key}")
        if value is not None:
            found[name] = value
    sizes = found.get("hidden_size"), found.get("num_attention_heads")
    if "attention.key_length" in family.keys and "head_dim" not in found and all(type(size) is int for size in sizes):
        found["head_dim"] = found["hidden_size"] // max(found["num_attention_heads"], 1)  # as in llama.cpp
    scaling = rope_scaling(contents, architecture, divisors)
    if architecture == "gemma3" and scaling.get("rope_type") not in (None, "linear"):
        raise UnsupportedConfig(f"gemma3.rope.scaling.type is {scaling['rope_type']!r}")
    for suffix in CHANGES_THE_OUTPUT:
        key = f"{architecture}.{suffix}"
        if suffix not in family.keys and (value := _field(contents, key)) not in (None, 0, 0.0, False, "none"):
            raise UnsupportedConfig(f"{key} is {value!r}")
    theta = _field(contents, f"{architecture}.rope.freq_base")
    embeddings = contents.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) < 2:
        raise UnsupportedConfig("the file has no token_embd.weight")
    if embeddings.shape[-1] != found["hidden_size"]:
        raise ModelFileError(
            f"{architecture}.embedding_length is {found['hidden_size']}, but {embeddings.name} has "
            f"{embeddings.shape[-1]} columns",
            "download it again",
        )
    if (size := _field(contents, f"{architecture}.rope.dimension_count")) is not None:
        heads = found.get("num_attention_heads")
        whole = found.get("head_dim") or (found["hidden_size"] // heads if heads and "hidden_size" in found else size)
        if (ratio := _ratio(size, whole)) != 1:
            found["partial_rotary_factor"] = ratio
    return {
        **found,
        **family.extra,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "rope_theta": theta or 10_000.0,
        "tie_word_embeddings": "output.weight" not in contents.tensors,
        "vocab_size": embeddings.shape[-2],
        # In Gemma 3 it holds for the layers without a window, in a GGUF as in a config.
        **({"rope_scaling": scaling} if scaling else {}),
        **({"query_pre_attn_scalar": _query_scalar(contents, architecture, found)} if "gemma" in architecture else {}),
    }


def _query_scalar(contents: GgufContents, architecture: str, found: Mapping[str, Any]) -> Any:
    """Returns what a GGUF does not have. llama.cpp recognizes the models with another scale by their layers, too."""
    if has_other_query_scale(contents, architecture):
        return found["hidden_size"] // found["num_attention_heads"]
    return found.get("head_dim", 256)


def has_other_query_scale(contents: GgufContents, architecture: str) -> bool:
    """Returns whether a file is of a Gemma of 27 billion parameters."""
    return bool(_field(contents, f"{architecture}.block_count") == {"gemma2": 46, "gemma3": 62}.get(architecture, 0))


def _ratio(part: Any, whole: Any) -> float:
    if not (is_number(part) and is_number(whole) and whole > 0):
        raise UnsupportedConfig(f"rope.dimension_count is {part!r}")
    return float(part / whole)


def _field(contents: GgufContents, key: str) -> Any:
    value = contents.entries.get(key)
    # One value per layer, the same for all.
    return value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value
