"""`specgen drafts` in the test's process: which candidates are found, how they are ranked, and what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specgen.core.cost_model import MeasuredCosts
from specgen.doctor.draft_measurement import DISTURBED
from specgen.runtime.pass_costs import measure_pass_costs
from tests.cli.conftest import EXACT, Cli
from tests.draft_heads import write_draft
from tests.toys import save_stranger, save_toy, successors, table_model, toy_tokenizer

LOADING = "-Q none --draft-quant none --dtype float32 --device cpu"
"""`EXACT` in a command."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: two drafts and a damaged one."""
    root = tmp_path_factory.mktemp("candidates")
    save_toy(root / "sibling")
    save_stranger(root / "stranger")
    save_toy(root / "damaged")
    (root / "damaged" / "model.safetensors").write_bytes(b"short")
    (root / "notes.txt").write_text("no model")
    return root


@pytest.fixture(autouse=True)
def own_folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def ranked(cli: Cli, target: Path, *arguments: object) -> Any:
    ended = cli("drafts", target, *EXACT, "--json", *arguments)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def by_name(document: Any) -> dict[str, Any]:
    return {Path(one["draft"]).name: one for one in document["drafts"]}


def test_models_of_a_folder_are_ranked_and_a_damaged_one_is_named(
    cli: Cli, toys: dict[str, Path], models: Path
) -> None:
    document = ranked(cli, toys["target"], "-d", models)

    found = by_name(document)
    assert {"lookup", "sibling", "stranger"} <= set(found)
    assert [Path(one["draft"]).name for one in document["unusable"]] == ["damaged"]
    assert found["sibling"]["draft_vocab"] == "same"
    assert found["stranger"]["draft_vocab"] in ("shared", "text")
    speedups = [one["speedup"]["value"] for one in document["drafts"]]
    assert speedups == sorted(speedups, reverse=True)
    for one in document["drafts"]:
        assert one["speedup"]["low"] <= one["speedup"]["value"] <= one["speedup"]["high"]
        assert one["command"].startswith(f"specgen bench -t {toys['target']} {LOADING} -d ")


@pytest.mark.usefixtures("no_weights")
def test_without_a_measurement_no_weights_are_read_and_all_is_an_estimate(
    cli: Cli, toys: dict[str, Path], models: Path
) -> None:
    document = ranked(cli, toys["target"], "-d", models / "sibling")

    assert document["target_basis"] == "estimated"
    assert {(one["cost_basis"], one["alpha_basis"]) for one in document["drafts"]} == {("estimated", "estimated")}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("specgen.loading.load.load_weights", refuse)


@pytest.mark.thorough
def test_measured_drafts_are_called_measured_and_remembered(
    cli: Cli, toys: dict[str, Path], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiet(*arguments: Any) -> MeasuredCosts:
        found = measure_pass_costs(*arguments)
        # A toy's passes take microseconds: next to other tests, any of them may seem to be the longest.
        return replace(found, verify_seconds=dict.fromkeys(found.verify_seconds, max(found.verify_seconds.values())))

    monkeypatch.setattr("specgen.doctor.draft_measurement.measure_pass_costs", quiet)
    arguments = ("-d", models / "sibling", "-d", models / "stranger")

    measured = ranked(cli, toys["target"], *arguments, "--measure")
    later = ranked(cli, toys["target"], *arguments)

    # Sibling and target are one model, so each token is accepted.
    sibling = by_name(measured)["sibling"]
    assert (sibling["alpha"], sibling["alpha_basis"], sibling["cost_basis"]) == (1.0, "measured", "measured")
    assert measured["target_basis"] == "measured"
    assert measured["target_seconds"] > 0
    remembered = by_name(later)["sibling"]
    assert (remembered["alpha"], remembered["alpha_basis"]) == (1.0, "learned")
    assert later["target_basis"] == "learned"


@pytest.mark.thorough
def test_a_base_model_is_expected_to_agree_less_with_a_target_that_was_trained_to_chat(
    cli: Cli, toys: dict[str, Path], models: Path
) -> None:
    base = save_toy(models.parent / "base" / "base", tokenizer=toy_tokenizer(template=None))

    for_chat = by_name(ranked(cli, toys["target"], "-d", models, "-d", base))
    for_base = by_name(ranked(cli, base, "-d", models))

    assert for_chat["base"]["alpha"] == pytest.approx(0.85 * for_chat["sibling"]["alpha"])
    assert for_base["sibling"]["alpha"] == for_chat["sibling"]["alpha"]


def test_costs_of_a_disturbed_measurement_are_reported_and_not_remembered(
    cli: Cli, toys: dict[str, Path], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen next to a compiler: 1.7 s for a pass over one token, 0.4 s over five, and a draft of 5.9x."""
    costs = MeasuredCosts({1: 1.7, 2: 1.3, 6: 0.4}, {"lookup": 0.01, str(models / "sibling"): 0.2})
    monkeypatch.setattr("specgen.doctor.draft_measurement.measure_pass_costs", lambda *_: costs)
    arguments = ("-d", models / "sibling")

    measured = ranked(cli, toys["target"], *arguments, "--measure")
    again = ranked(cli, toys["target"], *arguments)

    assert measured["notices"][-1] == DISTURBED
    sibling = by_name(again)["sibling"]
    assert (again["target_basis"], sibling["cost_basis"], sibling["alpha_basis"]) == (
        "estimated",
        "estimated",
        "learned",
    )


def test_the_text_has_the_commands_to_measure(cli: Cli, toys: dict[str, Path], models: Path) -> None:
    ended = cli("drafts", toys["target"], *EXACT, "-d", models / "sibling")

    text = ended.out.decode()
    assert ended.code == 0
    assert str(models / "sibling") in text
    assert "(estimated)" in text


def test_a_missing_target_is_an_error(cli: Cli, tmp_path: Path) -> None:
    assert cli("drafts", tmp_path / "none").code == 3


def test_the_target_is_no_candidate_in_its_own_folder(cli: Cli, tmp_path: Path) -> None:
    for name in ("target", "sibling"):
        save_toy(tmp_path / name)

    assert set(by_name(ranked(cli, tmp_path / "target", "-d", tmp_path))) == {"lookup", "sibling"}


@pytest.mark.thorough
def test_draft_heads_made_for_the_target_are_found_where_distill_writes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the working folder and next to the target; those of another target are left out, given ones are named."""
    target, other = table_model(successors()), table_model(successors(), 512)
    other.model.embed_tokens.weight.data.mul_(2)
    save_toy(tmp_path / "models" / "target", model=target)
    write_draft(tmp_path / "models" / "neighbour", target)
    write_draft(tmp_path / "work" / "own", target)
    write_draft(tmp_path / "work" / "foreign", other)
    (tmp_path / "work" / "damaged").mkdir()
    (tmp_path / "work" / "damaged" / "config.json").write_text('{"specgen_draft": {}}')
    monkeypatch.chdir(tmp_path / "work")

    document = ranked(cli, tmp_path / "models" / "target", "-d", tmp_path / "work" / "own")

    heads = [Path(one["draft"]).name for one in document["drafts"] if one["source"] == "draft head"]
    assert sorted(heads) == ["neighbour", "own"]
    assert not document["unusable"]
    given = ranked(cli, tmp_path / "models" / "target", "-d", "foreign")
    assert [one["draft"] for one in given["unusable"]] == ["foreign"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose cache has acme/Toy-2B, and the names that it lists."""
    commit = "0123456789" * 4
    root = tmp_path / "hub" / "models--acme--Toy-2B"
    save_toy(root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    names = [f"acme/Toy-{size}" for size in ("500M", "1B", "2B", "70B")]

    def list_models(_: object, *, author: str, **__: object) -> list[Any]:
        assert author == "acme"
        return [SimpleNamespace(id=name) for name in names]

    monkeypatch.setattr("huggingface_hub.HfApi.list_models", list_models)
    monkeypatch.setattr("specgen.loading.hub_family.is_reachable", lambda: True)
    return names


@pytest.mark.usefixtures("hub", "no_weights")
def test_smaller_models_of_the_family_on_the_hub_are_ranked_without_a_download(cli: Cli) -> None:
    document = ranked(cli, Path("acme/Toy-2B"))

    found = {one["draft"]: one for one in document["drafts"]}
    assert set(found) == {"lookup", "acme/Toy-500M", "acme/Toy-1B"}
    half = found["acme/Toy-500M"]
    assert (half["source"], half["cost_basis"], half["alpha_basis"]) == ("hub", "estimated", "estimated")
    assert half["draft_vocab"] is None
    assert half["num_bytes"] * 2 == pytest.approx(found["acme/Toy-1B"]["num_bytes"], rel=0.01)
    assert half["command"].startswith(f"specgen bench -t acme/Toy-2B {LOADING} -d acme/Toy-500M -k ")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("way", ["offline", "unreachable"])
@pytest.mark.fast("offline")
def test_without_a_network_the_rest_is_ranked_and_a_note_says_why(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("specgen.loading.hub_family.is_reachable", lambda: False)

    document = ranked(cli, Path("acme/Toy-2B"), *(["--offline"] if way == "offline" else []))

    assert [one["draft"] for one in document["drafts"]] == ["lookup"]
    assert len(document["notices"]) == 1


@pytest.mark.usefixtures("hub")
@pytest.mark.thorough
def test_models_of_the_hubs_cache_are_candidates(cli: Cli, toys: dict[str, Path]) -> None:
    found = {one["draft"]: one for one in ranked(cli, toys["target"])["drafts"]}

    assert found["acme/Toy-2B"]["source"] == "cache"
    assert found["acme/Toy-2B"]["draft_vocab"] == "same"


@pytest.mark.thorough
def test_a_draft_that_does_not_fit_comes_last_and_gets_no_command(
    cli: Cli, toys: dict[str, Path], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.doctor.examine.free_bytes", lambda _: 1000)

    document = ranked(cli, toys["target"], "-d", models / "sibling")
    text = cli("drafts", toys["target"], *EXACT, "-d", models / "sibling").out.decode()

    assert Path(document["drafts"][-1]["draft"]).name == "sibling"
    assert document["drafts"][-1]["fits"] is False
    assert f"bench -t {toys['target']} -d {models / 'sibling'}" not in text
