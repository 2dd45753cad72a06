"""Checks of draft head folders: valid ones are described, invalid ones refused, before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specgen.core.errors import ModelFileError, PairError
from specgen.core.settings import ModelSettings
from specgen.distill.saving import draft_config
from specgen.loading.config_check import check_folder, read_config
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.draft_head import load_tensors
from specgen.loading.draft_head_folder import (
    check_draft_head,
    check_own_target,
    draft_head_shapes,
    is_draft_head,
    shipped_draft,
    target_digest,
)
from tests.decoders import decoder_model
from tests.draft_heads import SlowDraft, open_draft, resolved_head, write_draft
from tests.fakes import assert_close
from tests.loading.builders import edit_json, edit_weights, fails, make_folder, make_model, resolved
from tests.models.test_decoder import BUILDERS, build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_draft(tmp_path / "draft", make_model(), kind="features", draft_ids=[1, 5, 9], num_layers=2)


def edit_draft_head(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["specgen_draft"] = {**config["specgen_draft"], **changes}
    path.write_text(json.dumps(config))


def test_a_checked_folder_is_described(folder: Path) -> None:
    config = check_draft_head(read_config(folder), folder)
    head = config.draft_head

    assert head is not None
    assert (head.kind, len(head.spec.layers), head.num_draft_ids, head.spec.hidden_size) == ("features", 2, 3, 32)
    assert (config.model_type, config.dtype, config.max_positions) == ("llama", "float32", 128)
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
    assert config.num_parameters == 2 * layer + 32 + 2 * 32 * 32
    assert load_tensors(folder, 64)["draft_ids"].tolist() == [1, 5, 9]


@pytest.mark.parametrize("window", [8, None])
def test_a_saved_draft_has_the_window_of_its_target(window: int | None) -> None:
    config = {**build("mistral").config.to_dict(), "sliding_window": window}
    draft: Any = SimpleNamespace(kind="features", target_layers=[0])

    saved = draft_config(config, draft, "toy", "0", 96)

    # A missing key would be a window of 4096.
    assert saved["sliding_window"] == window
    del saved["specgen_draft"]
    assert [layer.window for layer in decoder_spec(saved).layers] == [window]


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_the_expected_tensors_are_those_of_transformers_layers(kind: str) -> None:
    model = build(kind)
    expected = {
        name.removeprefix("model."): tuple(value.shape)
        for name, value in model.state_dict().items()
        if "embed_tokens" not in name and "lm_head" not in name
    }

    assert draft_head_shapes(decoder_spec(model.config.to_dict()), "layers", None) == expected


def test_a_draft_head_is_recognized_by_its_config(folder: Path, tmp_path: Path) -> None:
    assert is_draft_head(folder)
    assert not is_draft_head(make_folder(tmp_path / "model"))
    assert not is_draft_head(tmp_path / "nothing")


def test_a_draft_head_is_refused_as_a_model(folder: Path) -> None:
    fails(ModelFileError, lambda: check_folder(folder), "--draft")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "2"),
        ({"format": None}, "None"),
        ({"kind": "tree"}, "specgen_draft.kind is 'tree'"),
        ({"target_layers": "0,1"}, "target_layers"),
        ({"target_name": 3}, "target_name"),
        ({"target_digest": None}, "target_digest"),
        ({"num_draft_ids": 0}, "num_draft_ids is 0"),
        ({"num_draft_ids": True}, "num_draft_ids is True"),
        ({"num_draft_ids": 4}, "draft_ids"),
        ({"num_draft_ids": None}, "draft_ids"),
        ({"kind": "layers"}, "fc.weight"),
    ],
)
def test_its_own_part_of_the_config_is_checked(folder: Path, changes: dict[str, Any], named: str) -> None:
    edit_draft_head(folder, **changes)

    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2'"),
        ({"head_dim": -8}, "head_dim is -8"),
        ({"intermediate_size": 65}, "mlp"),
        ({"specgen_draft": 7}, "specgen_draft"),
        ({"attn_implementation": "evil/kernel"}, "evil/kernel"),
    ],
)
def test_the_rest_of_its_config_is_checked(folder: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(folder / "config.json", **changes)

    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), named)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("norm.weight"), "norm.weight"),
        (put("lm_head.weight", torch.zeros(64, 32)), "lm_head.weight"),
        (put("norm.weight", torch.ones(31)), "norm.weight"),
        (put("norm.weight", torch.ones(32, dtype=torch.int32)), "norm.weight"),
        (put("draft_ids", torch.tensor([1.0, 5.0, 9.0])), "draft_ids"),
    ],
)
def test_its_tensors_are_checked_by_name_shape_and_type(
    folder: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit_weights(folder, change)

    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("norm.weight", torch.full((32,), torch.nan)), "norm.weight"),
        (put("fc.weight", torch.full((32, 64), torch.inf)), "fc.weight"),
        (put("draft_ids", torch.tensor([1, 9, 5])), "draft_ids"),
        (put("draft_ids", torch.tensor([1, 5, 5])), "draft_ids"),
        (put("draft_ids", torch.tensor([-1, 5, 9])), "draft_ids"),
        (put("draft_ids", torch.tensor([1, 5, 64])), "draft_ids"),
    ],
)
def test_invalid_values_are_refused(folder: Path, change: Callable[[dict[str, Any]], None], named: str) -> None:
    edit_weights(folder, change)
    check_draft_head(read_config(folder), folder)

    fails(ModelFileError, lambda: load_tensors(folder, 64), named)


def test_a_truncated_file_and_a_pickle_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), "model.safetensors")

    path.rename(folder / "pytorch_model.bin")
    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), "pytorch_model.bin")

    (folder / "pytorch_model.bin").unlink()
    fails(ModelFileError, lambda: check_draft_head(read_config(folder), folder), "model.safetensors")


def test_a_draft_head_is_accepted_for_its_own_target_only(folder: Path, tmp_path: Path) -> None:
    draft = resolved_head(folder)
    own, other = (
        resolved(make_folder(tmp_path / name, seed=seed), ModelSettings(""))
        for name, seed in (("own", 0), ("other", 1))
    )

    check_own_target(draft, own)

    error = fails(PairError, lambda: check_own_target(draft, other), "draft", "toy", "other")
    assert error.exit_code == 4


def test_a_digest_does_not_depend_on_the_type_the_target_is_loaded_in() -> None:
    stored = torch.randn(100, 8)
    config = {"model_type": "llama", "hidden_size": 8, "vocab_size": 100}
    digest = target_digest(stored, config)

    assert len(digest) == 64
    assert target_digest(stored.bfloat16(), config) == digest
    assert target_digest(stored.bfloat16().float(), {**config, "rope_theta": 1.0}) == digest
    assert target_digest(stored, {**config, "vocab_size": 101}) != digest
    changed = stored.clone()
    changed[3, 3] += 1
    assert target_digest(changed, config) != digest


def test_a_digest_is_the_same_for_a_config_file_and_a_loaded_config(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    embedding = model.get_input_embeddings().weight

    assert target_digest(embedding, saved) == target_digest(embedding, model.config.to_dict())


def test_a_shipped_draft_is_found_by_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.loading.names.SHIPPED", tmp_path / "drafts")
    own = resolved(make_folder(tmp_path / "own"), ModelSettings(""))
    other = resolved(make_folder(tmp_path / "other", seed=1), ModelSettings(""))
    like = ModelSettings("", "int8", device="cpu")
    assert shipped_draft(own, like) is None
    expected = write_draft(tmp_path / "drafts" / "own", make_model())
    (tmp_path / "drafts" / "broken").mkdir()
    (tmp_path / "drafts" / "broken" / "config.json").write_text("{")

    draft = shipped_draft(own, like)
    assert draft is not None
    assert (draft.path, draft.name, draft.role, draft.format) == (expected, "own-draft", "draft", "draft head")
    assert draft.settings == replace(like, name=str(expected))
    assert shipped_draft(other, like) is None


OF_0_1_0 = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 8,
"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "rms_norm_eps": 1e-06, "hidden_act": "silu",
"attention_bias": false, "mlp_bias": false, "max_position_embeddings": 512, "vocab_size": 320,
"tie_word_embeddings": false, "bos_token_id": 287, "eos_token_id": 289, "num_hidden_layers": 1, "specgen_draft":
{"format": 1, "kind": "features", "target_layers": [0], "target_name": "target", "target_digest": "34698afc",
"num_draft_ids": 100}}"""
SHAPES_OF_0_1_0 = {
    "fc.weight": (32, 64),
    "norm.weight": (32,),
    "layers.0.input_layernorm.weight": (32,),
    "layers.0.post_attention_layernorm.weight": (32,),
    "layers.0.mlp.down_proj.weight": (32, 8),
    **{f"layers.0.mlp.{name}_proj.weight": (8, 32) for name in ("gate", "up")},
    **{f"layers.0.self_attn.{name}_proj.weight": (8, 32) for name in ("k", "v")},
    "layers.0.self_attn.q_proj.weight": (32, 32),
    "layers.0.self_attn.o_proj.weight": (32, 32),
}
"""What `specgen distill` of version 0.1.0 wrote."""


def write_draft_of_0_1_0(folder: Path, target_digest: str = "34698afc") -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in SHAPES_OF_0_1_0.items()
    }
    save_file({**tensors, "draft_ids": torch.arange(100)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(OF_0_1_0.replace("34698afc", target_digest))
    return folder


def test_a_draft_that_version_0_1_0_made_is_valid(tmp_path: Path) -> None:
    folder = write_draft_of_0_1_0(tmp_path)

    config = check_draft_head(read_config(folder), folder)

    assert config.draft_head is not None
    assert (config.draft_head.kind, config.draft_head.target_digest) == ("features", "34698afc")
    assert load_tensors(folder, 320)["draft_ids"].shape == (100,)


def test_a_draft_that_version_0_1_0_made_loads_and_drafts(tmp_path: Path) -> None:
    model = make_model(vocab_size=320, num_key_value_heads=1, intermediate_size=8)
    folder = write_draft_of_0_1_0(tmp_path, target_digest(model.get_input_embeddings().weight, model.config.to_dict()))
    target, text = decoder_model(model, 320), [1, 17, 40, 9]
    draft = open_draft(folder, target)
    target.feed(text[:-1])

    logits = draft.logits(text, 1)

    assert logits.shape == (1, 100)
    assert_close(logits, SlowDraft(folder, model).logits(text))
