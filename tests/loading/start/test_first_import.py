from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from specgen.loading.start.first_import import around_import

NAME = "specgen_test_of_first_import"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    (tmp_path / f"{NAME}.py").write_text("import sys\nsys.specgen_told.append('run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(sys, "specgen_told", found, raising=False)
    yield found
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "name", "") != NAME]


@contextmanager
def around(module: ModuleType) -> Iterator[None]:
    found: list[str] = sys.specgen_told  # type: ignore[attr-defined]
    found.append(f"before {module.__name__}")
    yield
    found.append("behind")


def test_only_the_first_import_is_enclosed(told: list[str]) -> None:
    before = list(sys.meta_path)
    around_import(NAME, around)
    around_import(NAME, around)

    module = importlib.import_module(NAME)
    importlib.reload(module)

    assert told == [f"before {NAME}", "run", "behind", "run"]
    assert sys.meta_path == before


def test_asking_whether_there_is_such_a_module_spoils_nothing(told: list[str]) -> None:
    around_import(NAME, around)

    assert importlib.util.find_spec(NAME) is not None
    importlib.import_module(NAME)

    assert told == [f"before {NAME}", "run", "behind"]


def test_imported_modules_are_not_changed(told: list[str]) -> None:
    importlib.import_module(NAME)

    around_import(NAME, around)
    importlib.reload(sys.modules[NAME])

    assert told == ["run", "run"]


def test_a_module_that_is_missing_stays_so() -> None:
    around_import("specgen_no_such_module", around)

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("specgen_no_such_module")
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "name", "") != "specgen_no_such_module"]
