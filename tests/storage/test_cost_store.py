"""Costs on disk are read for the same key only, and a damaged file is the same as a missing one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from specgen.storage.cost_store import MAX_FILES, MAX_UNCONFIRMED, CostStore, file_name

KEY = {"model": "abc", "quant": "nf4", "threads": 2, "versions": "torch 2.13"}
SECONDS = {"1": 0.2, "4": 0.25}


@pytest.fixture
def store(tmp_path: Path) -> CostStore:
    return CostStore(tmp_path / "costs")


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "costs" / file_name(KEY)


def test_stored_costs_are_read_again(store: CostStore) -> None:
    store.write(KEY, SECONDS, SECONDS)

    assert store.read(KEY) == SECONDS


def test_a_file_of_version_0_1_0_is_read(store: CostStore, tmp_path: Path) -> None:
    (tmp_path / "costs").mkdir()
    name = "782f2bf74b730a7a8d4d8806d6ed7c28.json"
    facts = '{"model": "abc", "quant": "nf4", "threads": 2, "versions": "torch 2.13"}'
    (tmp_path / "costs" / name).write_text(f'{{"format": 1, "facts": {facts}, "costs": {{"1": [0.2, 0]}}}}')

    assert store.read(KEY) == {"1": 0.2}


@pytest.mark.parametrize("change", [{"quant": "none"}, {"threads": 1}, {"versions": "torch 2.14"}, {"model": "abd"}])
def test_another_key_has_other_costs(store: CostStore, change: dict[str, str | int]) -> None:
    store.write(KEY, SECONDS, SECONDS)

    assert store.read({**KEY, **change}) == {}


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
        json.dumps({"format": 2, "facts": KEY, "costs": {"1": [0.1, 0]}}).encode(),
        *(
            json.dumps({"format": 1, "facts": KEY, "costs": costs}).encode()
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
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(store: CostStore, tmp_path: Path, content: bytes) -> None:
    store.write(KEY, SECONDS, SECONDS)
    file_of(tmp_path).write_bytes(content)

    assert store.read(KEY) == {}
    store.write(KEY, {"1": 0.3}, ["1"])

    assert store.read(KEY) == {"1": 0.3}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_folder_or_pipe_in_place_of_the_file_is_left_alone(store: CostStore, tmp_path: Path, kind: str) -> None:
    path = file_of(tmp_path)
    path.parent.mkdir()
    path.mkdir() if kind == "folder" else os.mkfifo(path)

    assert store.read(KEY) == {}
    store.write(KEY, SECONDS, SECONDS)

    assert [each for each in path.parent.iterdir() if each.name.endswith(".tmp")] == []


def test_a_folder_that_cannot_be_created_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    CostStore(tmp_path / "file" / "costs").write(KEY, SECONDS, SECONDS)
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "file" / "cache"))

    CostStore().write(KEY, SECONDS, SECONDS)

    assert CostStore().read(KEY) == {}


def test_costs_are_stored_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "cache"))

    CostStore().write(KEY, SECONDS, SECONDS)

    assert CostStore().read(KEY) == SECONDS
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "cache" / "costs"]


def test_a_cost_that_is_not_measured_again_is_dropped(store: CostStore) -> None:
    store.write(KEY, SECONDS, SECONDS)

    for _ in range(MAX_UNCONFIRMED):
        store.write(KEY, {**store.read(KEY), "1": 0.2}, ["1"])
        assert store.read(KEY) == SECONDS
    store.write(KEY, {**store.read(KEY), "1": 0.2}, ["1"])

    assert store.read(KEY) == {"1": 0.2}


def test_the_number_of_files_is_limited_and_the_oldest_is_removed(tmp_path: Path) -> None:
    store = CostStore(tmp_path)
    for number in range(MAX_FILES + 3):
        facts = {**KEY, "threads": number}
        store.write(facts, SECONDS, SECONDS)
        os.utime(tmp_path / file_name(facts), (number, number))

    store.write(KEY | {"threads": 10**6}, SECONDS, SECONDS)

    assert len(list(tmp_path.iterdir())) == MAX_FILES
    assert store.read({**KEY, "threads": 3}) == {}
    assert store.read({**KEY, "threads": MAX_FILES + 2}) == SECONDS


def test_old_temporary_files_are_removed(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.json.1-2.tmp", tmp_path / ".b.json.3-4.tmp"
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (0, 0))

    CostStore(tmp_path).write(KEY, SECONDS, SECONDS)

    assert not old.exists()
    assert fresh.exists()
