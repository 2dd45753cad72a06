"""Configs as decoder specs: every key is read, harmless, or sends the model to transformers with the key named.

The oracle is transformers: a config that its class has completed must give the same spec as the file.
"""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from specgen.loading.config_check import check_folder
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.decoder_families import decoder_spec
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.rotary import inverse_frequencies
from tests.fakes import TINY
from tests.profiles import thorough_except

CLASSES: dict[str, str] = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "phi3": "Phi3Config",
    "olmo2": "Olmo2Config",
    "smollm3": "SmolLM3Config",
    "granite": "GraniteConfig",
}
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 64}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64}
RULES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-factor": {**YARN, "attention_factor": 1.5},
    "yarn-betas": {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config as transformers completes it."""
    values = copy.deepcopy({key: value for key, value in config.items() if key != "model_type"})
    filled: dict[str, Any] = getattr(transformers, CLASSES[config["model_type"]])(**values).to_dict()
    return json.loads(json.dumps(filled))  # type: ignore[no-any-return]


def plain(model_type: str, **changes: Any) -> dict[str, Any]:
    """Returns the complete config of a tiny model."""
    return {**completed({"model_type": model_type, **TINY, "pad_token_id": 0}), **changes}


def without_rotary(model_type: str, **changes: Any) -> dict[str, Any]:
    """Returns a config without the keys that version 5 of transformers writes for the rotary embedding."""
    config = plain(model_type, **changes)
    del config["rope_parameters"]
    return config


def spec_or_none(config: dict[str, Any]) -> DecoderSpec | None:
    try:
        return decoder_spec(config)
    except UnsupportedConfig:
        return None


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_missing_key_has_the_default_of_transformers_or_is_refused(model_type: str) -> None:
    config = plain(model_type)

    for key in config.keys() - {"model_type"}:
        shorter = {name: value for name, value in config.items() if name != key}
        spec = spec_or_none(shorter)
        assert spec is None or spec == decoder_spec(completed(shorter)), key


@pytest.mark.parametrize("model_type", CLASSES)
def test_an_empty_config_is_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedConfig, match="hidden_size"):
        decoder_spec({"model_type": model_type})


@pytest.mark.parametrize("model_type", ["gpt2", "", None, 7, ["llama"], "gemma3"])
def test_another_model_type_is_refused_with_its_name(model_type: object) -> None:
    with pytest.raises(UnsupportedConfig) as caught:
        decoder_spec({**plain("llama"), "model_type": model_type})

    assert str(caught.value) == f"model_type is {model_type!r}"


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qk_layernorm", True),
        ("alibi", 1),
        ("num_experts", 8),
        ("rope_interleaved", True),
        ("pretraining_tp", 2),
        ("add_cross_attention", True),
        ("use_bidirectional_attention", True),
        ("rope_scaling_v2", None),
        ("hidden_act", "relu2"),
        ("rms_norm_eps", "small"),
    ],
)
def test_an_unknown_key_or_value_is_refused_with_its_name(model_type: str, key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig) as caught:
        decoder_spec(plain(model_type, **{key: value}))

    assert str(caught.value) == f"{key} is {value!r}"


@pytest.mark.parametrize("model_type", ["gemma2", "qwen2", "mistral", "phi3"])
def test_a_bias_that_the_family_does_not_have_is_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedConfig, match="mlp_bias"):
        decoder_spec(plain(model_type, mlp_bias=True))


def test_notes_of_the_library_are_ignored() -> None:
    assert decoder_spec(plain("llama", _name_or_path="x", _commit_hash="y")) == decoder_spec(plain("llama"))


@pytest.mark.parametrize("model_type", CLASSES)
@given(st.data())
def test_any_value_of_any_key_gives_a_spec_or_an_unsupported_config(model_type: str, data: st.DataObject) -> None:
    config = plain(model_type)
    nested = config["rope_parameters"]
    keys = [*config, "rope_scaling", "rope_theta", "partial_rotary_factor", "new_key"]
    if data.draw(st.booleans()):
        nested[data.draw(st.sampled_from([*nested, "factor", "rope_type"]))] = data.draw(JSON)
    else:
        config[data.draw(st.sampled_from(keys))] = data.draw(JSON)

    spec_or_none(config)


VALUES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "mlp_bias": (True,),
    "tie_word_embeddings": (True, False),
    "head_dim": (8, 32),
    "num_key_value_heads": (1, 4),
    "rms_norm_eps": (1e-5, 1e-3),
    "sliding_window": (7, None),
    "use_sliding_window": (True,),
    "max_window_layers": (0, 1, 2),
    "hidden_act": ("silu", "gelu", "gelu_pytorch_tanh"),
    "hidden_activation": ("gelu_pytorch_tanh", "silu", "relu"),
    "query_pre_attn_scalar": (16, 100),
    "attn_logit_softcapping": (None, 20.0),
    "final_logit_softcapping": (None, 15.0),
    "no_rope_layer_interval": (2, 3),
    "no_rope_layers": ([1, 0, 1], [1, 1, 1]),
    "embedding_multiplier": (2.0,),
    "attention_multiplier": (0.5,),
    "residual_multiplier": (0.25,),
    "logits_scaling": (3.0,),
    "layer_types": (["full_attention"] * 3, ["sliding_attention"] * 3),
    "sliding_window_pattern": (2, 3),
    "num_hidden_layers": (1, 4),
}
"""Values of keys that change the output of some family. A short config says them without what follows from them."""


ACCEPTED: dict[str, int] = {
    "llama": 85,
    "mistral": 84,
    "qwen2": 111,
    "qwen3": 161,
    "gemma2": 181,
    "gemma3_text": 221,
    "phi3": 60,
    "olmo2": 50,
    "smollm3": 114,
    "granite": 115,
}
"""Pairs of values that a spec describes. The others name an activation or a bias that a family does not have."""


@pytest.mark.parametrize("model_type", thorough_except(["llama", "gemma3_text", "smollm3", "granite"], CLASSES))
@pytest.mark.fast("llama", "granite")
def test_a_short_config_with_two_changed_values_gives_the_spec_of_the_completed_one(model_type: str) -> None:
    base = {"model_type": model_type, **TINY, "pad_token_id": 0}
    known = {*plain(model_type), "sliding_window_pattern"}
    changes = [(key, value) for key, values in VALUES.items() if key in known for value in values]
    num_accepted = 0
    for first, second in itertools.combinations(changes, 2):
        config = {**base, **dict([first, second])}
        try:
            full = completed(config)
        except Exception:  # noqa: BLE001  transformers refuses the values
            continue
        spec = spec_or_none(config)
        assert spec is None or spec == spec_or_none(full), (first, second)
        num_accepted += first[0] != second[0] and spec is not None
    assert num_accepted >= ACCEPTED[model_type]


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("rule", RULES)
def test_a_rotary_rule_has_the_frequencies_of_transformers(model_type: str, rule: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given_rule = {"rope_theta": 5000.0, **RULES[rule]}
    is_nested = model_type == "gemma3_text"
    parameters = {"full_attention": given_rule, "sliding_attention": RULES["default"]} if is_nested else given_rule
    config = {
        "model_type": model_type,
        **TINY,
        "pad_token_id": 0,
        "num_hidden_layers": 6,
        "rope_parameters": parameters,
    }
    if model_type == "mistral":
        config["sliding_window"] = None
    spec = spec_or_none(config)
    if (model_type == "phi3" and rule != "default") or (is_nested and rule not in ("default", "linear")):
        assert spec is None, "transformers reads their parameters at other places"
        return
    assert spec is not None
    full = getattr(transformers, CLASSES[model_type])(
        **{key: value for key, value in copy.deepcopy(config).items() if key != "model_type"}
    )
    rotary = next(layer.rotary for layer in spec.layers if layer.window is None and layer.rotary is not None)
    if rule == "default":
        expected = 1.0 / 5000.0 ** (torch.arange(0, rotary.size, 2, dtype=torch.int64).float() / rotary.size)
        factor = 1.0
    else:
        options = {"layer_type": "full_attention"} if is_nested else {}
        expected, factor = ROPE_INIT_FUNCTIONS[given_rule["rope_type"]](full, **options)
    frequencies, own_factor = inverse_frequencies(rotary)
    assert torch.equal(frequencies, expected)
    assert own_factor == factor


@pytest.mark.parametrize("model_type", sorted(CLASSES.keys() - {"gemma3_text", "phi3"}))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.fast("*-llama", "*-gemma2")
def test_the_old_form_of_a_rotary_rule_gives_the_same_spec_as_the_new_form(model_type: str, rule: str) -> None:
    new = decoder_spec(plain(model_type, rope_parameters={"rope_theta": 5000.0, **RULES[rule]}))
    scaling = {("type" if key == "rope_type" else key): value for key, value in RULES[rule].items()}

    for old in (RULES[rule], scaling, {**RULES[rule], **scaling}):
        config = without_rotary(model_type, rope_theta=5000.0, rope_scaling=old)
        assert decoder_spec(config) == new
        assert decoder_spec(completed(config)) == new


def test_gemma_3_has_two_rotary_embeddings_in_the_old_and_in_the_new_form() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    new = {"full_attention": {"rope_theta": 9e5, **linear}, "sliding_attention": {"rope_theta": 5e3}}
    changes = {"num_hidden_layers": 6, "layer_types": None}
    old = without_rotary("gemma3_text", rope_theta=9e5, rope_local_base_freq=5e3, rope_scaling=linear, **changes)

    spec = decoder_spec(plain("gemma3_text", rope_parameters=new, **changes))

    assert decoder_spec(old) == spec
    assert [layer.rotary.theta for layer in spec.layers if layer.rotary] == [5e3] * 5 + [9e5]
    assert [layer.rotary.scaling for layer in spec.layers if layer.rotary] == ["default"] * 5 + ["linear"]


@pytest.mark.parametrize("model_type", sorted(CLASSES.keys() - {"gemma3_text"}))
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 7000.0},
        {"rope_theta": 7000.0, "rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 7000.0, "rope_scaling": {}},
        {"rope_parameters": {"rope_theta": 7000.0}},
        {"rope_theta": 7000.0, "rope_parameters": {"rope_theta": 9000.0, "rope_type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 9000.0}},
        {"rope_parameters": {**YARN, "rope_theta": 9000.0}, ORIGINAL: 32},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 9000.0}, ORIGINAL: 32},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 9000.0}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 9000.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"type": "default"}},
    ],
)
def test_forms_of_a_rotary_embedding_are_read_as_transformers_does(model_type: str, keys: dict[str, Any]) -> None:
    config = {"model_type": model_type, **TINY, "pad_token_id": 0, **keys}

    spec = spec_or_none(config)

    assert spec is None or spec == spec_or_none(completed(config))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"rope_type": "longrope"}, "rope_type"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type"),
        ({"type": "su"}, "rope_type"),
        ({"rope_type": ["linear"]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}, "mrope_section"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section"),
        ({"full_attention": {"rope_type": "linear", "factor": 2.0}}, "full_attention"),
        ({"rope_type": "llama3", "factor": 2.0}, "low_freq_factor"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_rotary_rule_that_is_not_known_is_refused_with_its_key(parameters: dict[str, Any], name: str) -> None:
    with pytest.raises(UnsupportedConfig, match=name):
        decoder_spec(plain("llama", rope_parameters={"rope_theta": 10000.0, **parameters}))


HARMLESS: dict[str, Any] = {
    "attention_dropout": 0.5,
    "bos_token_id": 5,
    "eos_token_id": [5, 6],
    "pad_token_id": 7,
    "initializer_range": 0.5,
    "max_position_embeddings": 50,
    "use_cache": False,
    "dtype": "float16",
    "output_attentions": True,
    "chunk_size_feed_forward": 2,
    "id2label": {"0": "a"},
    "problem_type": "regression",
    "tokenizer_class": "X",
    "is_decoder": True,
    "pretraining_tp": 1,
    "max_window_layers": 1,
}


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_is_ignored_does_not_change_the_logits_of_transformers(key: str) -> None:
    def logits(**changes: Any) -> torch.Tensor:
        config = transformers.LlamaConfig(**{**TINY, "pad_token_id": 0, **changes})
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(index)
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
        return found

    changed = plain("llama", **{key: HARMLESS[key]})

    assert decoder_spec(changed) == decoder_spec(plain("llama"))
    assert torch.equal(logits(**{key: HARMLESS[key]}), logits())


def test_the_check_of_a_folder_names_the_key_that_leaves_a_model_to_transformers(folder: Any) -> None:
    assert (check_folder(folder).decoder is not None, check_folder(folder).unsupported) == (True, "")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "new_key": 3}))

    config = check_folder(folder)

    assert (config.decoder, config.unsupported) == (None, "new_key is 3")


def short_config(kind: str, **changes: Any) -> dict[str, Any]:
    """Returns the shortest config of a family, with changes."""
    return {**{key: value for key, value in TINY.items() if key != "bos_token_id"}, "model_type": kind, **changes}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_a_window_of_null_is_no_window(kind: str) -> None:
    changes = {"sliding_window": None} if kind == "mistral" else {"sliding_window": None, "use_sliding_window": True}

    spec = decoder_spec(short_config(kind, max_window_layers=0, **changes))

    assert {layer.window for layer in spec.layers} == {None}


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_a_family_that_needs_a_window_is_left_to_transformers_without_one(kind: str) -> None:
    with pytest.raises(UnsupportedConfig, match="sliding_window"):
        decoder_spec(short_config(kind, sliding_window=None))


def test_layer_types_that_the_code_of_mistral_ignores_are_left_to_transformers() -> None:
    types = ["full_attention"] * TINY["num_hidden_layers"]

    with pytest.raises(UnsupportedConfig, match="layer_types"):
        decoder_spec(short_config("mistral", sliding_window=8, layer_types=types))
