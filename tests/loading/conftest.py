"""The loading tests have a cache of their own, and libraries prepared as the program does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.loading.libraries import prepare_libraries

prepare_libraries(verbose=False)


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> Path:
    return cache
