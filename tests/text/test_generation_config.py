"""Checks what is read from a checkpoint's generation_config.json, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from specgen.core.settings import SamplingSettings, TokenRules
from specgen.text.generation_config import generation_defaults


def defaults_of(**values: Any) -> SamplingSettings | None:
    defaults = generation_defaults(values)
    assert defaults.notices == ()
    return defaults.sampling


def test_a_file_without_sampling_settings_gives_no_defaults() -> None:
    assert defaults_of(eos_token_id=1) is None


def test_a_missing_file_gives_no_defaults() -> None:
    assert defaults_of() is None


def test_the_defaults_of_a_model_that_samples_are_read() -> None:
    values = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1}

    assert defaults_of(do_sample=True, **values) == SamplingSettings(0.7, 20, 0.8, 0.05, 1.1)


def test_the_default_temperature_of_a_model_that_samples_is_one() -> None:
    assert defaults_of(do_sample=True) == SamplingSettings(temperature=1.0)


@pytest.mark.parametrize("do_sample", [False, None])
def test_a_greedy_model_keeps_its_repetition_penalty(do_sample: object) -> None:
    assert defaults_of(do_sample=do_sample, temperature=0.7, repetition_penalty=1.05) == SamplingSettings(
        repetition_penalty=1.05
    )


@pytest.mark.fault("F95")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1, "0.7", float("nan"), float("inf"), 10**320, True, [1])),
        *(("top_p", value) for value in (0, 1.5, -0.5, "1")),
        *(("top_k", value) for value in (-1, -2, "50", True, float("inf"))),
        *(("min_p", value) for value in (1, -0.1, {})),
        *(("repetition_penalty", value) for value in (0, -1, "x", float("inf"))),
    ],
)
def test_a_default_that_can_not_be_used_is_off_with_a_notice(name: str, value: object) -> None:
    defaults = generation_defaults({"do_sample": True, "temperature": 0.6, name: value})

    expected = SamplingSettings(temperature=1.0 if name == "temperature" else 0.6)
    assert defaults.sampling == expected
    assert len(defaults.notices) == 1
    assert f"{name} {value!r}"[:60] in defaults.notices[0]


@pytest.mark.fault("F95")
def test_a_greedy_model_needs_no_temperature() -> None:
    defaults = generation_defaults({"do_sample": False, "temperature": "hot", "repetition_penalty": 0})

    assert defaults.sampling == SamplingSettings()
    assert "repetition_penalty 0" in defaults.notices[0]
    assert "temperature" not in defaults.notices[0]


RULES = {
    "forced_eos_token_id": 2,
    "cache_implementation": "quantized",
    "num_beams": 4,
    "guidance_scale": 1.5,
    "exponential_decay_length_penalty": [10, 1.1],
}


@pytest.mark.fault("F96")
def test_rules_that_are_not_applied_are_named_in_one_notice() -> None:
    (notice,) = generation_defaults(RULES).notices

    assert [name for name in RULES if name not in notice] == []


@pytest.mark.fault("F96")
def test_rules_that_are_off_are_not_named() -> None:
    off = {"suppress_tokens": [], "no_repeat_ngram_size": 0, "min_length": 0, "num_beams": 1, "guidance_scale": None}

    defaults = generation_defaults(off, frozenset({2}))
    assert defaults.notices == ()
    assert not defaults.rules.has_effect


@pytest.mark.fault("F96")
def test_tokens_that_a_model_forbids_are_read() -> None:
    given = {"suppress_tokens": [5], "begin_suppress_tokens": [6], "bad_words_ids": [[5, 6], [2], [7]]}
    lengths = {"no_repeat_ngram_size": 2, "min_new_tokens": 30, "min_length": 3}

    defaults = generation_defaults({**given, **lengths, "sequence_bias": [[[4, 5], -1]]}, frozenset({2}))

    assert defaults.notices == ()
    assert defaults.rules == TokenRules(
        frozenset({5}), frozenset({6}), ((5, 6), (7,)), 2, 30, 0, frozenset({2}), (((4, 5), -1.0),)
    )


WITHOUT_EFFECT = {
    *("max_length", "max_new_tokens", "max_cache_len", "use_cache", "cache_config", "prefill_chunk_size", "low_memory"),
    *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "pad_token_id", "bos_token_id", "decoder_start_token_id", "renormalize_logits"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "use_mtp", "compile_config"),
    *("disable_compile", "continuous_batching_config", "transformers_version"),
    *("length_penalty", "early_stopping", "diversity_penalty"),  # of beams, which are named themselves
}
"""Fields that change no greedy or sampled text, or only its length."""


@pytest.mark.fault("F96")
def test_every_field_of_the_library_is_applied_or_named() -> None:
    from transformers import GenerationConfig

    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    applied = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_strings"}
    applied |= {"suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "min_new_tokens"}
    applied |= {"min_length", "sequence_bias", "eos_token_id", "forced_bos_token_id"}

    rest = fields - applied - WITHOUT_EFFECT
    (notice,) = generation_defaults({"do_sample": True, **dict.fromkeys(rest, 0.25)}).notices

    assert [name for name in sorted(rest) if name not in notice] == []


@pytest.mark.fault("F95")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", [-1]),
        ("begin_suppress_tokens", 5),
        ("bad_words_ids", [5]),
        ("bad_words_ids", [[]]),
        ("no_repeat_ngram_size", -2),
        ("min_new_tokens", "3"),
        ("min_length", True),
        ("sequence_bias", {"5": 1.0}),
        ("sequence_bias", [[[5], float("inf")]]),
        ("sequence_bias", [[[], 1.0]]),
    ],
)
def test_a_rule_that_can_not_be_used_is_off_with_a_notice(name: str, value: object) -> None:
    defaults = generation_defaults({name: value})

    assert not defaults.rules.has_effect
    assert f"{name} {value!r}" in defaults.notices[0]


@pytest.mark.fault("F96")
@pytest.mark.parametrize("do_sample", [True, False])
def test_rules_for_sampling_are_named_only_where_the_model_samples(do_sample: bool) -> None:
    defaults = generation_defaults({"do_sample": do_sample, "typical_p": 0.9, "epsilon_cutoff": 0.1})

    assert bool(defaults.notices) is do_sample


@pytest.mark.fault("F96")
def test_stop_strings_are_applied() -> None:
    assert generation_defaults({"stop_strings": ["###", "."]}).stops == ("###", ".")
    assert generation_defaults({"stop_strings": "###"}).stops == ("###",)
    assert generation_defaults({"stop_strings": ["a", ""]}).notices != ()
