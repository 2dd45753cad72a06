"""`specgen drafts` in the test's process: which candidates are found, how they are ranked, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import EXACT, Cli
from tests.toys import save_stranger, save_toy


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
        assert one["command"].startswith(f"specgen bench -t {toys['target']} -d ")


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


def test_measured_drafts_are_called_measured_and_remembered(cli: Cli, toys: dict[str, Path], models: Path) -> None:
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


def test_the_text_has_the_commands_to_measure(cli: Cli, toys: dict[str, Path], models: Path) -> None:
    ended = cli("drafts", toys["target"], *EXACT, "-d", models / "sibling")

    text = ended.out.decode()
    assert ended.code == 0
    assert str(models / "sibling") in text
    assert "an estimate" in text


def test_a_missing_target_is_an_error(cli: Cli, tmp_path: Path) -> None:
    assert cli("drafts", tmp_path / "none").code == 3
