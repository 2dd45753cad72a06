"""Costs on disk: what was measured comes back, for the same facts only, and nothing that is wrong with it matters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from specgen.storage.cost_store import MAX_FILES, MAX_UNCONFIRMED, CostStore, file_name

FACTS = {"model": "abc", "quant": "nf4", "threads": 2, "versions": "torch 2.13"}
SECONDS = {"1": 0.2, "4": 0.25}


@pytest.fixture
def store(tmp_path: Path) -> CostStore:
    return CostStore(tmp_path / "costs")


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "costs" / file_name(FACTS)


def test_what_was_measured_comes_back(store: CostStore) -> None:
    store.write(FACTS, SECONDS, SECONDS)

    assert store.read(FACTS) == SECONDS


@pytest.mark.parametrize("change", [{"quant": "none"}, {"threads": 1}, {"versions": "torch 2.14"}, {"model": "abd"}])
def test_other_facts_have_costs_of_their_own(store: CostStore, change: dict[str, str | int]) -> None:
    store.write(FACTS, SECONDS, SECONDS)

    assert store.read({**FACTS, **change}) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 60000,
        b" " * 70000,
        json.dumps({"format": 1, "facts": {"model": "other"}, "costs": {"1": [0.1, 0]}}).encode(),
        json.dumps({"format": 2, "facts": FACTS, "costs": {"1": [0.1, 0]}}).encode(),
        *(
            json.dumps({"format": 1, "facts": FACTS, "costs": costs}).encode()
            for costs in (
                None,
                {"1": 0.1},
                {"1": [0.1]},
                {"1": [-0.1, 0]},
                {"1": [0.0, 0]},
                {"1": [float("nan"), 0]},
                {"1": [float("inf"), 0]},
                {"1": [1e9, 0]},
                {"1": ["0.1", 0]},
                {"1": [True, 0]},
                {"1": [0.1, 99]},
                {"1": [0.1, None]},
                {str(n): [0.1, 0] for n in range(1000)},
            )
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_nothing_known_and_gets_rewritten(
    store: CostStore, tmp_path: Path, content: bytes
) -> None:
    store.write(FACTS, SECONDS, SECONDS)
    file_of(tmp_path).write_bytes(content)

    assert store.read(FACTS) == {}
    store.write(FACTS, {"1": 0.3}, ["1"])

    assert store.read(FACTS) == {"1": 0.3}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_left_alone(store: CostStore, tmp_path: Path, kind: str) -> None:
    path = file_of(tmp_path)
    path.parent.mkdir()
    path.mkdir() if kind == "folder" else os.mkfifo(path)

    assert store.read(FACTS) == {}
    store.write(FACTS, SECONDS, SECONDS)

    assert [each for each in path.parent.iterdir() if each.name.endswith(".tmp")] == []


def test_a_folder_that_cant_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    CostStore(tmp_path / "file" / "costs").write(FACTS, SECONDS, SECONDS)
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "file" / "cache"))

    CostStore().write(FACTS, SECONDS, SECONDS)

    assert CostStore().read(FACTS) == {}


def test_costs_live_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "cache"))

    CostStore().write(FACTS, SECONDS, SECONDS)

    assert CostStore().read(FACTS) == SECONDS
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "cache" / "costs"]


def test_an_entry_nobody_measures_again_is_forgotten(store: CostStore) -> None:
    store.write(FACTS, SECONDS, SECONDS)

    for _ in range(MAX_UNCONFIRMED):
        store.write(FACTS, {**store.read(FACTS), "1": 0.2}, ["1"])
        assert store.read(FACTS) == SECONDS
    store.write(FACTS, {**store.read(FACTS), "1": 0.2}, ["1"])

    assert store.read(FACTS) == {"1": 0.2}


def test_the_number_of_files_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    store = CostStore(tmp_path)
    for number in range(MAX_FILES + 3):
        facts = {**FACTS, "threads": number}
        store.write(facts, SECONDS, SECONDS)
        os.utime(tmp_path / file_name(facts), (number, number))

    store.write(FACTS | {"threads": 10**6}, SECONDS, SECONDS)

    assert len(list(tmp_path.iterdir())) == MAX_FILES
    assert store.read({**FACTS, "threads": 3}) == {}
    assert store.read({**FACTS, "threads": MAX_FILES + 2}) == SECONDS


def test_what_a_killed_program_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.json.1-2.tmp", tmp_path / ".b.json.3-4.tmp"
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (0, 0))

    CostStore(tmp_path).write(FACTS, SECONDS, SECONDS)

    assert not old.exists()
    assert fresh.exists()
