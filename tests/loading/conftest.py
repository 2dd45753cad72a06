"""Fixtures of the loading tests: a cache of their own, and libraries prepared as the program does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.loading.libraries import prepare_libraries
from tests.loading.builders import make_folder

prepare_libraries(verbose=False)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty specgen cache; no test can touch the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPECGEN_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole tiny model folder."""
    return make_folder(tmp_path / "tiny")
