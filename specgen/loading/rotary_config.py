"""Translates the rotary embedding of a config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specgen.loading.config_reader import ConfigReader, UnsupportedConfig, is_number
from specgen.models.decoder_spec import DecoderSpec, RotaryScaling, RotarySpec

ORIGINAL_CONTEXT = "original_max_position_embeddings"

_RULES: Mapping[RotaryScaling, tuple[Sequence[str], Sequence[str]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL_CONTEXT), ()),
    "longrope": (("attention_factor", ORIGINAL_CONTEXT), ("factor",)),
    "yarn": (
        ("factor", ORIGINAL_CONTEXT),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Required and optional parameters of each rule."""
_KNOWN = {key for required, optional in _RULES.values() for key in (*required, *optional)}


def read_rotary(
    reader: ConfigReader, spec: DecoderSpec, *, theta: float = 10_000.0, can_be_partial: bool = False
) -> RotarySpec:
    """Returns the rotary embedding of a model that has one for all layers.

    Args:
        reader: Of the config.
        spec: What is known so far.
        theta: The family's default base.
        can_be_partial: The family may rotate a part of each head.
    """
    found, old = read_table(reader, "rope_parameters"), read_table(reader, "rope_scaling")
    given = {
        "rope_theta": reader.get("rope_theta", theta),
        "partial_rotary_factor": reader.get("partial_rotary_factor", 1.0),
        # As in transformers, the old key replaces the new one.
        **(old or found),
    }
    # As in transformers, the config's own number precedes the rule's.
    if (original := reader.get(ORIGINAL_CONTEXT)) is not None and ORIGINAL_CONTEXT in given:
        given[ORIGINAL_CONTEXT] = original
    rotary = rotary_from(given, spec.head_size)
    if rotary.size != spec.head_size and not can_be_partial:
        raise UnsupportedConfig(f"partial_rotary_factor is {given['partial_rotary_factor']!r}")
    return rotary


def read_table(reader: ConfigReader, key: str) -> dict[str, Any]:
    """Returns an object of a config; empty where it is missing or null.

    Raises:
        UnsupportedConfig: It is of another type.
    """
    value = reader.get(key, {})
    if not isinstance(value, dict):
        raise UnsupportedConfig(f"{key} is {value!r}")
    return value


def rotary_from(given: Mapping[str, Any], head_size: int) -> RotarySpec:
    """Returns the rotary embedding that a rule and its parameters describe.

    Raises:
        UnsupportedConfig: The rule or a parameter is unknown or invalid.
    """
    parameters = {key: value for key, value in given.items() if value is not None}
    old_kind = parameters.pop("type", "default")
    kind: RotaryScaling = parameters.pop("rope_type", old_kind)
    if not isinstance(kind, str) or kind not in _RULES:
        raise UnsupportedConfig(f"rope_type is {kind!r}")
    theta, partial = parameters.pop("rope_theta", None), parameters.pop("partial_rotary_factor", 1.0)
    if not is_number(theta) or theta <= 1:
        raise UnsupportedConfig(f"rope_theta is {theta!r}")
    size = int(head_size * partial) if is_number(partial) and 0 < partial <= 1 else 0
    if size < 2 or size % 2:
        raise UnsupportedConfig(f"partial_rotary_factor is {partial!r}")
    factors = _factors(parameters, size) if kind == "longrope" else ()
    required, optional = _RULES[kind]
    for key, value in parameters.items():
        is_valid = is_number(value) and (value > 0 or (value == 0 and key not in required))
        if key not in _KNOWN or not (is_valid or (key == "truncate" and isinstance(value, bool))):
            raise UnsupportedConfig(f"{key} of the rotary embedding is {value!r}")
    if missing := [key for key in required if key not in parameters]:
        raise UnsupportedConfig(f"{missing[0]} of the rotary embedding is missing")
    # What another rule left is not read by this one.
    numbers = sorted((key, value) for key, value in parameters.items() if key in (*required, *optional))
    return RotarySpec(float(theta), size, kind, tuple(numbers), factors)


def _factors(parameters: dict[str, Any], size: int) -> tuple[float, ...]:
    """Removes the factors of LongRoPE from its parameters; they must be the same at every length of a text."""
    short, long = parameters.pop("short_factor", None), parameters.pop("long_factor", None)
    if not isinstance(short, list) or len(short) != size // 2 or not all(is_number(x) and x > 0 for x in short):
        raise UnsupportedConfig(f"rope_type is 'longrope', and short_factor {short!r}")
    if long != short:
        raise UnsupportedConfig("rope_type is 'longrope', with other factors for long texts")
    return tuple(float(factor) for factor in short)


def scaled_window(config: Mapping[str, Any], window: int | None) -> int | None:
    """Returns the context window of a config, scaled by its rotary embedding.

    As in vLLM, `yarn` multiplies the original window, which is the named one where it is not given, and `linear` and
    `dynamic` the named one. The other rules already name the scaled window (`llama3`, `longrope`, Gemma 3).

    Args:
        config: The text part of a config.json.
        window: The window that it names, in tokens.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters")
    if window is None or not isinstance(given, dict):
        return window
    if "short_factor" in given or "gemma3" in str(config.get("model_type")):
        return window
    kind, factor = given.get("rope_type", given.get("type")), given.get("factor")
    if kind not in ("yarn", "linear", "dynamic") or factor is None or not is_number(factor):
        return window
    original = given.get(ORIGINAL_CONTEXT) if kind == "yarn" else None
    return max(window, int(float(original if original is not None and is_number(original) else window) * float(factor)))
