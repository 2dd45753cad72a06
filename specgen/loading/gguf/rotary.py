"""Translates the scaled rotary embedding of a GGUF file into the `rope_scaling` of a config.json.

transformers' own conversion silently drops it for all architectures but gpt-oss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specgen.core.errors import ModelFileError
from specgen.loading.config_reader import UnsupportedConfig, is_number

if TYPE_CHECKING:
    from specgen.loading.gguf.contents import GgufContents

_KEPT_BY_TRANSFORMERS = ("gpt-oss",)
FACTORS = "rope_freqs.weight"
_OTHER_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
_UNTRANSLATED = ("yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor")


def rope_scaling(contents: GgufContents, architecture: str, divisors: Sequence[float] = ()) -> dict[str, Any]:
    """Returns the rule of a GGUF's rotary embedding; empty if it is not scaled.

    Divisors of the frequencies (`rope_freqs`, of Llama 3.1) become LongRoPE with the same factors at every length.
    As in llama.cpp, a factor without a type is linear.

    Args:
        contents: The file's.
        architecture: The file's.
        divisors: The values of its tensor `rope_freqs`, if it has one and they matter.

    Raises:
        UnsupportedConfig: The file scales in another way.
    """

    def field(name: str) -> Any:
        return contents.entries.get(f"{architecture}.{name}")

    tensors = contents.tensors
    if other := [name for name in _OTHER_FACTORS if name in tensors]:
        raise UnsupportedConfig(f"the file has {other[0]}")
    factor = field("rope.scaling.factor") or field("rope.scale_linear") or 1.0
    kind = field("rope.scaling.type") or "linear"
    if not is_number(factor) or factor <= 0:
        raise UnsupportedConfig(f"rope.scaling.factor is {factor!r}")
    for name in _UNTRANSLATED:
        if (value := field(f"rope.scaling.{name}")) not in (None, 0):
            raise UnsupportedConfig(f"rope.scaling.{name} is {value!r}")
    context = field("context_length")
    if FACTORS in tensors:
        if kind not in ("none", "linear"):
            raise UnsupportedConfig(f"the file has rope_freqs, and rope.scaling.type is {kind!r}")
        scaled = [divisor * (1.0 if kind == "none" else factor) for divisor in divisors]
        factors = {"short_factor": scaled, "long_factor": scaled}
        rule = {"factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": context}
        return {"rope_type": "longrope", **rule, **factors}
    if kind == "none" or (factor == 1.0 and kind == "linear"):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn":
        raise UnsupportedConfig(f"{architecture}.rope.scaling.type is {kind!r}")
    optional = {name: field(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    # llama.cpp multiplies YaRN's own factor by this one.
    attention = float(field("rope.scaling.attn_factor") or 1.0)
    if attention != 1.0:
        optional["attention_factor"] = attention * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0)
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": field("rope.scaling.original_context_length") or context,
        **{name: value for name, value in optional.items() if value is not None},
    }


def refuse_lost_scaling(contents: GgufContents) -> None:
    """Refuses a file whose rotary embedding transformers would read as if it were not scaled.

    Raises:
        ModelFileError: It would.
    """
    architecture = str(contents.entries["general.architecture"])
    if architecture in _KEPT_BY_TRANSFORMERS:
        return
    try:
        reason = "it has a scaled rotary embedding" if rope_scaling(contents, architecture) else ""
    except UnsupportedConfig as error:
        reason = str(error)
    if reason:
        raise ModelFileError(
            f"{contents.path} can't be converted without changing the model's output: {reason}",
            "use --backend llama.cpp (pip install 'specgen-cli[gguf]'), or a folder with safetensors",
        )


def carry_base_over(contents: GgufContents, config: Any) -> None:
    """Sets base and size of the rotary embedding in the config of a file that transformers converted.

    It drops those of some architectures, such as StarCoder2 and StableLM, and takes the default.

    Args:
        contents: The file's.
        config: The converted model's, a `transformers.PreTrainedConfig`.
    """
    architecture = str(contents.entries["general.architecture"])
    base = contents.entries.get(f"{architecture}.rope.freq_base")
    rotary = getattr(config, "rope_parameters", None)
    if base is not None and isinstance(rotary, dict) and "rope_theta" in rotary:
        rotary["rope_theta"] = float(base)
    size = contents.entries.get(f"{architecture}.rope.dimension_count")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if isinstance(rotary, dict) and "partial_rotary_factor" in rotary:  # llama.cpp rotates all without the entry
        rotary["partial_rotary_factor"] = 1.0 if size is None else size / head_size
