"""Gives these tests their own cache and state folders, and prepares the libraries as the program does."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.loading.libraries import prepare_libraries

prepare_libraries(verbose=False)


@pytest.fixture(autouse=True)
def own_folders(cache: Path, state: Path) -> None:
    pass
