"""Folders of shallow drafts: what is right is told, what is wrong is refused, before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import ModelFileError, PairError
from specgen.loading.config_check import check_folder
from specgen.loading.draft_head_folder import (
    check_draft_head,
    check_own_target,
    is_draft_head,
    load_tensors,
    shipped_draft,
    target_digest,
)
from specgen.loading.draft_head_tensors import tensor_shapes
from tests.draft_heads import write_draft
from tests.loading.builders import edit_json, edit_weights, fails, make_folder, make_model
from tests.models.test_decoder import BUILDERS, build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_draft(tmp_path / "draft", make_model(), kind="features", draft_ids=[1, 5, 9], num_layers=2)


def about(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["specgen_draft"] = {**config["specgen_draft"], **changes}
    path.write_text(json.dumps(config))


def test_facts_of_a_draft(folder: Path) -> None:
    facts = check_draft_head(folder)

    assert (facts.kind, facts.num_layers, facts.num_draft_ids, facts.hidden_size) == ("features", 2, 3, 32)
    assert (facts.config.model_type, facts.config.dtype, facts.config.max_positions) == ("llama", "float32", 128)
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
    assert facts.config.num_parameters == 2 * layer + 32 + 2 * 32 * 32
    assert facts.remark == "2 layers on the target's embeddings, reads the target's features, proposes 3 tokens"
    assert load_tensors(facts)["draft_ids"].tolist() == [1, 5, 9]


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_the_tensors_asked_for_are_those_of_transformers_layers(kind: str) -> None:
    model = build(kind)
    wanted = {
        name.removeprefix("model."): tuple(value.shape)
        for name, value in model.state_dict().items()
        if "embed_tokens" not in name and "lm_head" not in name
    }

    assert tensor_shapes(model.config.to_dict(), "layers", None) == wanted


def test_a_folder_is_told_apart_by_its_config(folder: Path, tmp_path: Path) -> None:
    assert is_draft_head(folder)
    assert not is_draft_head(make_folder(tmp_path / "model"))
    assert not is_draft_head(tmp_path / "nothing")


def test_it_is_no_model_of_its_own(folder: Path) -> None:
    fails(ModelFileError, lambda: check_folder(folder), "is a shallow draft", "--draft", "beside its target")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "format None"),
        ({"kind": "tree"}, "specgen_draft.kind is 'tree'"),
        ({"target_layers": "0,1"}, "target_layers"),
        ({"target_name": 3}, "target_name"),
        ({"target_digest": None}, "target_digest"),
        ({"num_draft_ids": 0}, "num_draft_ids is 0"),
        ({"num_draft_ids": True}, "num_draft_ids is True"),
        ({"num_draft_ids": 4}, "has one tensor of another shape: draft_ids"),
        ({"num_draft_ids": None}, "holds one tensor the config has no place for: draft_ids"),
        ({"kind": "layers"}, "holds one tensor the config has no place for: fc.weight"),
    ],
)
def test_what_its_config_says_of_it_is_checked(folder: Path, changes: dict[str, Any], told: str) -> None:
    about(folder, **changes)

    fails(ModelFileError, lambda: check_draft_head(folder), told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors the config asks for: layers.2"),
        ({"num_hidden_layers": 1}, "holds 9 tensors the config has no place for: layers.1"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2'"),
        ({"head_dim": -8}, "head_dim is -8"),
        ({"intermediate_size": 65}, "of another shape"),
        ({"specgen_draft": 7}, "specgen_draft is no object"),
        ({"attn_implementation": "evil/kernel"}, "asks for foreign code"),
    ],
)
def test_the_rest_of_its_config_is_checked(folder: Path, changes: dict[str, Any], told: str) -> None:
    edit_json(folder / "config.json", **changes)

    fails(ModelFileError, lambda: check_draft_head(folder), told)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("norm.weight"), "lacks one tensor the config asks for: norm.weight"),
        (put("lm_head.weight", torch.zeros(64, 32)), "no place for: lm_head.weight"),
        (put("norm.weight", torch.ones(31)), "of another shape: norm.weight"),
        (put("norm.weight", torch.ones(32, dtype=torch.int32)), "of a type it can't have: norm.weight"),
        (put("draft_ids", torch.tensor([1.0, 5.0, 9.0])), "of a type it can't have: draft_ids"),
    ],
)
def test_its_tensors_are_checked_by_name_shape_and_type(
    folder: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    edit_weights(folder, change)

    fails(ModelFileError, lambda: check_draft_head(folder), told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("norm.weight", torch.full((32,), torch.nan)), "norm.weight holds NaN"),
        (put("fc.weight", torch.full((32, 64), torch.inf)), "fc.weight holds NaN or infinity"),
        (put("draft_ids", torch.tensor([1, 9, 5])), "no ascending ids"),
        (put("draft_ids", torch.tensor([1, 5, 5])), "no ascending ids"),
        (put("draft_ids", torch.tensor([-1, 5, 9])), "no ascending ids"),
        (put("draft_ids", torch.tensor([1, 5, 64])), "no ascending ids"),
    ],
)
def test_values_no_draft_can_have_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    edit_weights(folder, change)

    fails(ModelFileError, lambda: load_tensors(check_draft_head(folder)), told)


def test_a_cut_file_and_a_pickle_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    fails(ModelFileError, lambda: check_draft_head(folder), "corrupt")

    path.rename(folder / "pytorch_model.bin")
    fails(ModelFileError, lambda: check_draft_head(folder), "only safetensors")

    (folder / "pytorch_model.bin").unlink()
    fails(ModelFileError, lambda: check_draft_head(folder), "holds no model.safetensors")


def test_a_draft_fits_its_own_target_only(folder: Path, tmp_path: Path) -> None:
    facts = check_draft_head(folder)
    own, other = make_folder(tmp_path / "own"), make_folder(tmp_path / "other", seed=1)

    check_own_target(facts, "draft", own, "own")

    error = fails(PairError, lambda: check_own_target(facts, "draft", other, "other"), "draft was made for another")
    assert error.exit_code == 4
    assert "(toy) than other" in error.message


def test_a_digest_does_not_depend_on_the_type_a_target_is_loaded_in() -> None:
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
    monkeypatch.setattr("specgen.loading.draft_head_folder.SHIPPED", tmp_path / "drafts")
    own, other = make_folder(tmp_path / "own"), make_folder(tmp_path / "other", seed=1)
    assert shipped_draft(own) is None
    wanted = write_draft(tmp_path / "drafts" / "own", make_model())
    (tmp_path / "drafts" / "broken").mkdir()
    (tmp_path / "drafts" / "broken" / "config.json").write_text("{")

    assert shipped_draft(own) == wanted
    assert shipped_draft(other) is None
