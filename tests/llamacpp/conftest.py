"""All tests here need the extra `gguf` and are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specgen.loading.libraries import prepare_libraries
from tests.engine.engines import needs_llama_cpp

prepare_libraries(verbose=False)

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = f"{HERE}{os.sep}"
    for item in items:
        if str(item.path).startswith(here):
            for mark in needs_llama_cpp:
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> Path:
    return cache
