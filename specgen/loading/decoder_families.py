"""Translates the configs of families of checkpoints into decoder specs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from specgen.loading.config_reader import ConfigReader, UnsupportedConfig
from specgen.loading.rotary_config import read_rotary, read_table, rotary_from
from specgen.models.decoder_spec import Activation, DecoderSpec, LayerSpec, RotarySpec

_ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Translates a config.json.

    Raises:
        UnsupportedConfig: Its model type, a key or a value has no translation.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UnsupportedConfig(f"model_type is {config.get('model_type')!r}")
    reader = ConfigReader(config)
    spec = family(reader)
    reader.check_rest()
    return spec


def _base(reader: ConfigReader, *, activation_key: str = "hidden_act", num_kv_heads: int | None = None) -> DecoderSpec:
    """Reads what all families have in common; the family adds the layers' windows and rotary embeddings.

    Args:
        reader: Of the config.
        activation_key: Names the activation.
        num_kv_heads: The family's default where the key is missing; null means as many as query heads.
    """
    hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_size = reader.integer("head_dim", hidden_size // num_heads)
    activation = reader.get(activation_key, "silu" if activation_key == "hidden_act" else "gelu_pytorch_tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UnsupportedConfig(f"{activation_key} is {activation!r}")
    is_given = "num_key_value_heads" in reader.config
    key_heads = reader.integer("num_key_value_heads", num_heads if is_given else num_kv_heads or num_heads)
    if num_heads % key_heads:
        raise UnsupportedConfig(f"num_key_value_heads is {key_heads}")
    return DecoderSpec(
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=key_heads,
        head_size=head_size,
        vocab_size=reader.integer("vocab_size"),
        layers=(LayerSpec(None, None),) * reader.integer("num_hidden_layers"),
        activation=_ACTIVATIONS[activation],
        norm_epsilon=reader.number("rms_norm_eps", 1e-6),
        is_tied=reader.flag("tie_word_embeddings"),
        attention_scale=head_size**-0.5,
    )


def _with_layers(spec: DecoderSpec, rotary: RotarySpec, windows: Sequence[int | None]) -> DecoderSpec:
    return replace(spec, layers=tuple(LayerSpec(window, rotary) for window in windows))


def _windows(reader: ConfigReader, window: int | None, default: Sequence[bool]) -> list[int | None]:
    """Windows of the layers by `layer_types`, or by `default`: whether each layer has one."""
    types = reader.get("layer_types")
    if types is None:
        return [window if is_windowed else None for is_windowed in default]
    if not isinstance(types, list) or len(types) != len(default):
        raise UnsupportedConfig(f"layer_types is {types!r} for {len(default)} layers")
    if unknown := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
        raise UnsupportedConfig(f"layer_types has {unknown[0]!r}")
    if "sliding_attention" in types and window is None:
        raise UnsupportedConfig("sliding_window is missing")
    return [window if kind == "sliding_attention" else None for kind in types]


def _window(reader: ConfigReader) -> int | None:
    """Returns the window: 4096 where the key is missing, transformers' default for these families; null means none."""
    if "sliding_window" in reader.config and reader.get("sliding_window") is None:
        return None
    return reader.integer("sliding_window", 4096)


def _required_window(reader: ConfigReader) -> int:
    window = _window(reader)
    if window is None:
        raise UnsupportedConfig("sliding_window is None")
    return window


def _llama(reader: ConfigReader) -> DecoderSpec:
    spec = _base(reader)
    bias = reader.flag("attention_bias")
    spec = replace(spec, has_qkv_bias=bias, has_output_bias=bias, has_mlp_bias=reader.flag("mlp_bias"))
    return _with_layers(spec, read_rotary(reader, spec), [None] * len(spec.layers))


def _granite(reader: ConfigReader) -> DecoderSpec:
    return replace(
        _llama(reader),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        attention_scale=reader.number("attention_multiplier", 1.0),
        residual_scale=reader.number("residual_multiplier", 1.0),
        logits_divisor=reader.number("logits_scaling", 1.0),
    )


def _mistral(reader: ConfigReader) -> DecoderSpec:
    spec = _base(reader, num_kv_heads=8)
    window = _window(reader)
    windows = _windows(reader, window, [True] * len(spec.layers))
    if any(found != window for found in windows):
        # transformers' code for Mistral ignores the key.
        raise UnsupportedConfig("layer_types has layers without a window")
    return _with_layers(spec, read_rotary(reader, spec), windows)


def _qwen(reader: ConfigReader) -> tuple[DecoderSpec, RotarySpec, list[int | None]]:
    spec = _base(reader, num_kv_heads=32)
    window = _window(reader) if reader.flag("use_sliding_window") else None
    reader.read.add("sliding_window")
    first = reader.integer("max_window_layers", 28, minimum=0)
    return spec, read_rotary(reader, spec), _windows(reader, window, [i >= first for i in range(len(spec.layers))])


def _qwen2(reader: ConfigReader) -> DecoderSpec:
    spec, rotary, windows = _qwen(reader)
    return _with_layers(replace(spec, has_qkv_bias=True), rotary, windows)


def _qwen3(reader: ConfigReader) -> DecoderSpec:
    spec, rotary, windows = _qwen(reader)
    head_size = reader.integer("head_dim", 128)
    bias = reader.flag("attention_bias")
    spec = replace(spec, head_size=head_size, attention_scale=head_size**-0.5, qk_norm="head")
    rotary = read_rotary(reader, spec)
    return _with_layers(replace(spec, has_qkv_bias=bias, has_output_bias=bias), rotary, windows)


def _smollm3(reader: ConfigReader) -> DecoderSpec:
    spec = _base(reader, num_kv_heads=4)
    bias = reader.flag("attention_bias")
    spec = replace(
        spec,
        is_tied=reader.flag("tie_word_embeddings", default=True),
        has_qkv_bias=bias,
        has_output_bias=bias,
        has_mlp_bias=reader.flag("mlp_bias"),
    )
    interval = reader.integer("no_rope_layer_interval", 4)
    num_layers = len(spec.layers)
    has_rope = reader.get("no_rope_layers", [int((index + 1) % interval != 0) for index in range(num_layers)])
    if not isinstance(has_rope, list) or len(has_rope) != num_layers or any(flag not in (0, 1) for flag in has_rope):
        raise UnsupportedConfig(f"no_rope_layers is {has_rope!r}")
    window = reader.integer("sliding_window") if reader.flag("use_sliding_window") else None
    reader.read.add("sliding_window")
    windows = _windows(reader, window, [not flag for flag in has_rope])
    rotary = read_rotary(reader, spec, theta=2_000_000.0)
    layers = (LayerSpec(window, rotary if flag else None) for window, flag in zip(windows, has_rope, strict=True))
    return replace(spec, layers=tuple(layers))


def _olmo2(reader: ConfigReader) -> DecoderSpec:
    spec = _base(reader)
    bias = reader.flag("attention_bias")
    spec = replace(
        spec,
        norm_epsilon=reader.number("rms_norm_eps", 1e-5),
        norm_placement="post",
        scales_norm_in_float32=True,
        rotates_in_float32=True,
        qk_norm="all",
        has_qkv_bias=bias,
        has_output_bias=bias,
    )
    return _with_layers(spec, read_rotary(reader, spec), [None] * len(spec.layers))


def _phi3(reader: ConfigReader) -> DecoderSpec:
    spec = replace(_base(reader), norm_epsilon=reader.number("rms_norm_eps", 1e-5), has_fused_tensors=True)
    window = None if reader.get("sliding_window") is None else reader.integer("sliding_window")
    rotary = read_rotary(reader, spec, can_be_partial=True)
    if rotary.scaling != "default":
        # transformers replaces the original context of other rules by a default of its class.
        raise UnsupportedConfig(f"rope_type is {rotary.scaling!r}")
    return _with_layers(spec, rotary, [window] * len(spec.layers))


def _gemma(reader: ConfigReader) -> DecoderSpec:
    """Reads what Gemma 2 and 3 have in common, except the layers."""
    spec = _base(reader, activation_key="hidden_activation", num_kv_heads=4)
    if (scalar := reader.number("query_pre_attn_scalar", 256)) <= 0:
        raise UnsupportedConfig(f"query_pre_attn_scalar is {scalar!r}")
    if (hidden_act := reader.get("hidden_act")) not in (None, "gelu_pytorch_tanh", "gelu_pytorch"):
        raise UnsupportedConfig(f"hidden_act is {hidden_act!r}")
    bias = reader.flag("attention_bias")
    return replace(
        spec,
        head_size=reader.integer("head_dim", 256),
        norm_placement="both",
        norm_offset=1.0,
        scales_norm_in_float32=True,
        has_qkv_bias=bias,
        has_output_bias=bias,
        is_tied=reader.flag("tie_word_embeddings", default=True),
        attention_scale=scalar**-0.5,
        embedding_scale=float(spec.hidden_size) ** 0.5,
        rounds_embedding_scale=True,
    )


def _gemma2(reader: ConfigReader) -> DecoderSpec:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **reader.config}
    reader.read |= {"attn_logit_softcapping", "final_logit_softcapping"}
    completed = ConfigReader(caps)
    spec = replace(
        _gemma(reader),
        attention_soft_cap=completed.optional("attn_logit_softcapping"),
        logits_soft_cap=completed.optional("final_logit_softcapping"),
    )
    window = _required_window(reader)
    default = [bool((index + 1) % 2) for index in range(len(spec.layers))]
    return _with_layers(spec, read_rotary(reader, spec), _windows(reader, window, default))


def _gemma3(reader: ConfigReader) -> DecoderSpec:
    spec = replace(
        _gemma(reader),
        qk_norm="head",
        attention_soft_cap=reader.optional("attn_logit_softcapping"),
        logits_soft_cap=reader.optional("final_logit_softcapping"),
    )
    pattern = reader.integer("sliding_window_pattern", 6)
    window = _required_window(reader)
    default = [bool((index + 1) % pattern) for index in range(len(spec.layers))]
    windows = _windows(reader, window, default)
    rotary, local_rotary = _gemma3_rotary(reader, spec)
    layers = (LayerSpec(window, rotary if window is None else local_rotary) for window in windows)
    return replace(spec, layers=tuple(layers))


def _gemma3_rotary(reader: ConfigReader, spec: DecoderSpec) -> tuple[RotarySpec, RotarySpec]:
    """Returns the rotary embeddings of the layers without and with a window."""
    by_type = ConfigReader(read_table(reader, "rope_parameters"))
    whole = {
        "rope_theta": reader.get("rope_theta", 1_000_000.0),
        **read_table(by_type, "full_attention"),
        **read_table(reader, "rope_scaling"),
    }
    local = {
        "rope_theta": reader.get("rope_local_base_freq", 10_000.0),
        **read_table(by_type, "sliding_attention"),
    }
    by_type.check_rest()
    found = rotary_from(whole, spec.head_size), rotary_from(local, spec.head_size)
    for rotary in found:
        if rotary.scaling not in ("default", "linear"):
            # transformers reads some parameters of the other rules at the wrong place.
            raise UnsupportedConfig(f"rope_type is {rotary.scaling!r}")
        if rotary.size != spec.head_size:
            raise UnsupportedConfig("partial_rotary_factor is not 1")
    return found


_FAMILIES: Mapping[str, Callable[[ConfigReader], DecoderSpec]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "granite": _granite,
}
