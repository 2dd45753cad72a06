"""The folders of a user, with and without a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specgen.core.errors import LoadError, OutputError
from specgen.core.settings import ModelSettings
from specgen.loading.hub import fetch_snapshot
from specgen.storage.cost_store import CostStore
from specgen.storage.folders import cache_folder, cache_root, private_folder, state_folder
from specgen.storage.saved_chats import SessionFolder


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Takes HOME, the user's entry and all variables away; returns the current folder, which is empty."""

    def missing(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in list(os.environ):
        if name == "HOME" or name.startswith(("SPECGEN_", "XDG_", "HF_", "HUGGINGFACE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", missing)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.fault("F126")
def test_without_a_home_there_is_nothing_to_read_and_errors_name_the_variables(nobody: Path) -> None:
    store = CostStore()
    store.write({"model": "x"}, {"pass": 1.0}, ["pass"])

    assert store.read({"model": "x"}) == {}
    assert not cache_root().exists()
    assert SessionFolder().entries() == []
    with pytest.raises(LoadError, match="home") as caught:
        cache_folder("models")
    assert "SPECGEN_CACHE" in (caught.value.hint or "")
    with pytest.raises(OutputError, match="home") as failed:
        private_folder(state_folder() / "sessions")
    assert "SPECGEN_STATE" in (failed.value.hint or "")
    with pytest.raises(LoadError, match="home") as not_loaded:
        fetch_snapshot(ModelSettings("owner/tiny"))
    assert "HF_HOME" in (not_loaded.value.hint or "")
    assert list(nobody.iterdir()) == []


@pytest.mark.fault("F126")
def test_a_tilde_in_a_variable_is_no_folder_name(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_CACHE", "~/cache")
    monkeypatch.setenv("SPECGEN_STATE", "~/state")

    with pytest.raises(LoadError, match="home"):
        cache_folder("models")
    with pytest.raises(OutputError, match="home"):
        private_folder(state_folder() / "sessions")


@pytest.mark.fault("F126")
def test_variables_name_the_folders_of_a_user_without_a_home(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_CACHE", str(nobody / "cache"))
    monkeypatch.setenv("SPECGEN_STATE", str(nobody / "state"))

    assert cache_folder("models") == nobody / "cache" / "models"
    assert private_folder(state_folder() / "sessions") == nobody / "state" / "sessions"


def test_a_tilde_in_a_variable_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPECGEN_STATE", "~/state")

    assert state_folder() == tmp_path / "state"
