"""These tests have cache and state folders of their own, and libraries prepared as the program does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.loading.libraries import prepare_libraries

prepare_libraries(verbose=False)


@pytest.fixture(autouse=True)
def own_folders(cache: Path, state: Path) -> None:
    pass
