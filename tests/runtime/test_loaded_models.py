"""What is said about a pair whose draft can't help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specgen.core.draft_tree import ROOT
from specgen.core.settings import DecodeSettings, DraftSchedule, ModelSettings, PairSettings
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.draft_length.tree_plan import Branching
from specgen.loading.resolve import find_files, resolve
from specgen.loading.resolved_model import ResolvedModel
from specgen.runtime.drafting import with_trees
from specgen.runtime.loaded_models import LoadedModels, _size_notice, load_models
from specgen.runtime.pair import resolve_pair
from tests.loading.builders import VOCAB, make_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    folder = tmp_path_factory.mktemp("models") / "model"
    make_folder(folder)
    settings = ModelSettings(str(folder))
    return resolve(find_files(settings), settings, "target")


def sized(model: ResolvedModel, num_parameters: int, path: str = "/elsewhere") -> ResolvedModel:
    config = replace(model.config, num_parameters=num_parameters, num_weight_bytes=2 * num_parameters)
    return replace(model, config=config, files=replace(model.files, path=Path(path)))


@pytest.mark.fault("F139")
@pytest.mark.parametrize(
    ("target", "draft", "values"),
    [
        (10**9, 10**9, ("1.9 GiB",)),
        (10**8, 4 * 10**9, ("7.5 GiB", "40 times")),
        (10**9, 10**8, ()),
        (10**6, 10**7, ()),
    ],
)
def test_a_draft_as_large_as_its_target_is_a_notice(
    model: ResolvedModel, target: int, draft: int, values: tuple[str, ...]
) -> None:
    notice = _size_notice(sized(model, target, "/target"), sized(model, draft))

    assert (notice is None) == (not values)
    assert [value for value in values if value not in (notice or "")] == []
    assert ("times" in (notice or "")) == (len(values) == 2)


@pytest.mark.fault("F139")
def test_a_target_that_drafts_for_itself_is_loaded_twice(model: ResolvedModel) -> None:
    large = sized(model, 10**9)

    assert "twice" in (_size_notice(large, large) or "")


@pytest.mark.fault("F101")
def test_a_token_that_the_draft_has_no_embedding_for_is_a_notice(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name) for name in ("target", "draft")]
    path = folders[1] / "tokenizer.json"
    value = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    value["added_tokens"].append({"id": VOCAB, "content": "<extra>", "special": True, **flags})
    path.write_text(json.dumps(value))
    target, draft = (ModelSettings(str(folder), quant="none", dtype="float32", device="cpu") for folder in folders)

    models = load_models(resolve_pair(PairSettings(target, "model", draft)))

    assert any("draft" in notice and "<extra>" in notice for notice in models.notices)


@pytest.mark.parametrize("schedule", ["constant", "auto"])
def test_trees_are_sized_by_cost_whatever_decides_their_depth(tmp_path: Path, schedule: DraftSchedule) -> None:
    settings = [
        ModelSettings(str(make_folder(tmp_path / name)), quant="none", dtype="float32", device="cpu")
        for name in ("target", "draft")
    ]
    models = load_models(resolve_pair(PairSettings(settings[0], "model", settings[1])))
    # Every further row costs as much as a step: only a token that is surely accepted is worth one.
    costs = CostTable({num: float(num) for num in range(1, 18)})
    models.draft_length = CostAwareLength(costs, DraftCost(10.0, costs))
    policy = models.length_policy(DecodeSettings(9, 3, schedule, num_tree_nodes=8, tree_schedule="auto"))
    fixed = models.length_policy(DecodeSettings(9, 3, schedule, num_tree_nodes=8))
    unsure = [Branching(ROOT, 0, 1.0, [0.3, 0.2, 0.1])]
    assert isinstance(policy, TreeLength)
    assert isinstance(fixed, TreeLength)

    assert not policy.next_tokens(unsure, 0, depth=3).branchings
    assert fixed.next_tokens(unsure, 0, depth=3).branchings


@pytest.mark.parametrize(
    ("schedule", "is_greedy", "device", "num_nodes"),
    [("auto", True, "cpu", 16), ("constant", True, "cpu", 0), ("auto", False, "cpu", 0), ("auto", True, "cuda", 0)],
)
def test_trees_are_the_default_of_greedy_text_on_a_cpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: DraftSchedule,
    is_greedy: bool,
    device: str,
    num_nodes: int,
) -> None:
    settings = [
        ModelSettings(str(make_folder(tmp_path / name)), quant="none", dtype="float32", device="cpu")
        for name in ("target", "draft")
    ]
    models = load_models(resolve_pair(PairSettings(settings[0], "model", settings[1])))
    given = DecodeSettings(9, 3, schedule, num_tree_nodes=16, tree_schedule="default")
    if device != "cpu":
        monkeypatch.setattr(LoadedModels, "devices", [torch.device("cpu"), torch.device(device)])

    made = with_trees(models, given, is_greedy=is_greedy)

    assert (made.num_tree_nodes, made.tree_schedule) == (num_nodes, "auto" if num_nodes else "constant")
    assert isinstance(models.length_policy(made), TreeLength) == (num_nodes > 0)
    assert with_trees(models, replace(given, tree_schedule="auto"), is_greedy=is_greedy).num_tree_nodes == 16
