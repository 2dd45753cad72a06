"""Tensors that a checkpoint has and the model has no place for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specgen.core.errors import ModelFileError
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.left_over import misplaced
from specgen.loading.weights import load_weights
from tests.fakes import assert_close
from tests.loading.builders import VOCAB, edit_weights, fails, make_folder, make_model, resolved

EXPECTED = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up.weight",
    "model.layers.1.mlp.up.weight",
    "lm_head.weight",
]


@pytest.mark.fault("F18", "F144")
@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (["v_head.summary.weight"], False),
        (["vision_tower.layers.7.mlp.up.weight"], False),
        (["mtp.layers.0.mlp.up.weight"], False),
        (["model.layers.2.eh_proj.weight", "model.layers.2.mlp.up.weight"], False),
        (["model.layers.2.mlp.up.weight"], True),
        (["layers.2.mlp.up.weight"], True),
        (["model.layers.1.mlp.up.bias"], True),
        (["model.layers.1.attention_norm.weight"], True),
        (["lm_head.bias"], True),
    ],
)
def test_only_tensors_that_change_the_text_are_refused(names: list[str], is_refused: bool) -> None:
    assert misplaced(names, EXPECTED) == (sorted(names) if is_refused else [])


@pytest.mark.fault("F144")
@pytest.mark.parametrize("backend", ["torch", "transformers"])
def test_a_value_head_is_left_out_with_a_notice(tmp_path: Path, backend: str) -> None:
    folder = make_folder(tmp_path)
    names = ["v_head.summary.weight", "model.layers.2.eh_proj.weight"]
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2) for name in names}))
    settings = ModelSettings("m", dtype="float32", quant="none", backend=BackendSettings(backend))  # type: ignore[arg-type]

    loaded = load_weights(resolved(folder, settings), VOCAB)

    assert any(all(name in notice for name in names) for notice in loaded.notices)
    assert_close(loaded.model.logits([5, 6], 1), make_model()(torch.tensor([[5, 6]])).logits[0, -1:].detach())


def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.fault("F144")
@pytest.mark.parametrize("backend", ["torch", "transformers"])
def test_a_model_that_was_saved_without_its_tied_head_runs(tmp_path: Path, backend: str) -> None:
    folder = make_folder(tmp_path, tie_word_embeddings=True)
    edit_weights(folder, without_prefix)
    settings = ModelSettings("m", dtype="float32", quant="none", backend=BackendSettings(backend))  # type: ignore[arg-type]

    loaded = load_weights(resolved(folder, settings), VOCAB)

    expected = make_model(tie_word_embeddings=True)(torch.tensor([[5, 6]])).logits[0, -1:].detach()
    assert_close(loaded.model.logits([5, 6], 1), expected)


@pytest.mark.fault("F130")
def test_a_model_that_was_saved_without_a_head_of_its_own_is_called_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    edit_weights(folder, lambda tensors: tensors.update({"score.weight": tensors.pop("lm_head.weight")}))
    edit_weights(folder, without_prefix)
    settings = ModelSettings("m", dtype="float32", quant="none")

    fails(ModelFileError, lambda: load_weights(resolved(folder, settings), VOCAB), "lm_head", "classifiers")
