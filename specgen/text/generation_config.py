"""Reads what a checkpoint's generation_config.json asks for: sampling defaults, and rules for the text.

A value that can't be used is off, with a notice: an option overrides a default anyway. A rule that transformers'
`generate` would apply and specgen does not is named: those that need several texts at a time or another pass, or that
depend on the length at which the text will end. Lengths (`max_new_tokens`, `max_length`) are limits of specgen's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError, SettingsError
from specgen.core.model_files import read_optional_json
from specgen.core.settings import NO_RULES, SamplingSettings, TokenRules

GENERATION_CONFIG = "generation_config.json"
_DEFAULTS: dict[str, float] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_RULES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("force_words_ids",), ([],)),
    **dict.fromkeys(("constraints",), ([], {})),
    **dict.fromkeys(("forced_eos_token_id", "forced_decoder_ids"), ([],)),
    **dict.fromkeys(("penalty_alpha",), (0,)),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"), (0, 1)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), (0, 1)),
    "cache_implementation": ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid", "mamba"),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "dola_layers"), ([], {})),
    **dict.fromkeys(("remove_invalid_values", "token_healing"), (False,)),
    "max_time": (),
}
"""Rules that are not applied, and the values besides null that switch each of them off."""
_SAMPLING_RULES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "top_h"), (0,)),
    "typical_p": (1,),
}
"""Rules that change only a sampled text."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a checkpoint asks for.

    Args:
        sampling: The sampling settings that the model's authors recommend; None if they recommend none.
        stops: Strings that end the text.
        rules: Tokens that they forbid, and those that end the text.
        notices: What is left out, one line each.
    """

    sampling: SamplingSettings | None = None
    stops: tuple[str, ...] = ()
    rules: TokenRules = NO_RULES
    notices: tuple[str, ...] = ()


def read_generation_defaults(folder: Path, tokenizer: Any, config: Mapping[str, Any]) -> GenerationDefaults:
    """Reads generation_config.json of a model folder. A damaged file sets nothing: the model runs without it.

    Args:
        folder: The file may be missing there.
        tokenizer: The model's.
        config: Content of its config.json.
    """
    values, damaged = dict[str, Any](), tuple[str, ...]()
    try:
        values = read_optional_json(folder / GENERATION_CONFIG)
    except ModelFileError as error:
        damaged = (f"{GENERATION_CONFIG} is ignored: {error.message}",)
    defaults = generation_defaults(values, end_ids(tokenizer, values, config))
    return replace(defaults, notices=(*damaged, *defaults.notices))


def end_ids(tokenizer: Any, generation_config: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[int]:
    """Returns the ids that end a text: those of generation_config.json (else config.json) and the tokenizer's own."""
    ids = _ids(generation_config.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    if tokenizer.eos_token_id is not None:
        ids |= {int(tokenizer.eos_token_id)}
    return frozenset(ids)


def generation_defaults(config: Mapping[str, Any], end_ids: frozenset[int] = frozenset()) -> GenerationDefaults:
    """Returns what a generation_config.json asks for.

    As in transformers, `do_sample` false means greedy, and the repetition penalty still applies. Unlike there, a
    missing top_k is off: 50 is the library's default, not the model's.

    Args:
        config: Its content.
        end_ids: The tokens that end the model's texts.
    """
    known = ("do_sample", *_DEFAULTS)
    samples = config.get("do_sample") is True
    names = tuple(_DEFAULTS) if samples else ("repetition_penalty",)
    values, invalid = {}, []
    for name in names:
        value = config.get(name)
        values[name], is_valid = _usable(name, value)
        if not is_valid:
            invalid.append(f"{name} {value!r}")
    if not samples:
        values["temperature"] = 0.0
    sampling = None
    if any(config.get(key) is not None for key in known):
        sampling = SamplingSettings(**values)  # type: ignore[arg-type]
    stops, are_valid = _stops(config.get("stop_strings"))
    if not are_valid:
        invalid.append(f"stop_strings {config['stop_strings']!r}")
    token_rules, unusable = _token_rules(config, end_ids)
    invalid += unusable
    rules = {**_RULES, **(_SAMPLING_RULES if samples else {})}
    ignored = [name for name, off in rules.items() if config.get(name) is not None and config[name] not in off]
    notices = []
    if invalid:
        notices.append(f"{GENERATION_CONFIG}: ignored {_cut(', '.join(invalid))}: not a usable value")
    if ignored:
        notices.append(
            f"{GENERATION_CONFIG} asks for {', '.join(ignored)}, which specgen does not apply: "
            "transformers' generate may write another text"
        )
    return GenerationDefaults(sampling, stops, token_rules, tuple(notices))


def _usable(name: str, value: object) -> tuple[float, bool]:
    """Returns the value of a setting, or its default, and whether it could be used."""
    default = _DEFAULTS[name]
    if value is None:
        return default, True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default, False
    try:
        number = int(value) if name == "top_k" else float(value)
        SamplingSettings(**{name: number})  # type: ignore[arg-type]
    except (SettingsError, OverflowError, ValueError):  # a number without limit, or none: JSON may hold both
        return default, False
    return number, True


def _token_rules(config: Mapping[str, Any], end_ids: frozenset[int]) -> tuple[TokenRules, list[str]]:
    """Returns the tokens that a config forbids, and the values that can't be used."""
    invalid = []

    def read(name: str, is_usable: Callable[[object], bool], default: Any) -> Any:
        value = config.get(name)
        if value is None or is_usable(value):
            return default if value is None else value
        invalid.append(f"{name} {value!r}")
        return default

    suppressed, begin = (frozenset(read(name, _is_ids, ())) for name in ("suppress_tokens", "begin_suppress_tokens"))
    words = tuple(tuple(word) for word in read("bad_words_ids", _is_words, ()))
    biases = tuple((tuple(ids), float(bias)) for ids, bias in read("sequence_bias", _is_biases, ()))
    names = ("no_repeat_ngram_size", "min_new_tokens", "min_length")
    ngram_size, min_new, min_length = (read(name, _is_count, 0) for name in names)
    forced = read("forced_bos_token_id", lambda value: _is_ids([value]), None)
    # As in `generate`: the end of a text is no bad word, and min_new_tokens replaces min_length.
    words = tuple(word for word in words if len(word) > 1 or word[0] not in end_ids)
    min_length = 0 if min_new else min_length
    return TokenRules(suppressed, begin, words, ngram_size, min_new, min_length, end_ids, biases, forced), invalid


def _ids(value: object) -> set[int]:
    items = value if isinstance(value, list) else [value]
    return {item for item in items if type(item) is int and item >= 0}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(_is_ids(item) and item for item in value)


def _is_biases(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and _is_words([item[0]]) and _is_number(item[1]) for item in value
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf  # type: ignore[arg-type]


def _stops(value: object) -> tuple[tuple[str, ...], bool]:
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    stops = tuple(item for item in items if isinstance(item, str) and item)
    return stops, value is None or len(stops) == len(items) > 0 or value == []


def _cut(text: str) -> str:
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= 200 else line[:197] + "..."
