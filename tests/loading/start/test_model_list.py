"""The list of transformers' models that is kept: what a look finds, for as long as the files are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specgen.loading.start.model_list import LOOKER, file_for, listed

FOUND = {
    "albert": {
        frozenset(): {"configuration_albert": {"AlbertConfig"}},
        frozenset({"torch", "vision"}): {"modeling_albert": {"AlbertModel", "AlbertLayer"}},
    },
    "old": {"bort": {frozenset({"torch"}): {"modeling_bort": {"Bort"}}}, frozenset(): {}},
    frozenset(): {"auto": {"AutoConfig"}},
}


class DisplayOptions:
    """Stands for transformers' own, and counts."""

    def __init__(self, found: dict[Any, Any]) -> None:
        self.found, self.num_looks = found, 0

    def __call__(self, path: str) -> dict[Any, Any]:
        self.num_looks += 1
        return self.found


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "transformers" / "models"
    (folder / "old" / "bort").mkdir(parents=True)
    (folder / "old" / "bort" / "modeling_bort.py").write_text("class Bort: ...")
    (folder.parent / "utils").mkdir()
    (folder.parent / "utils" / "import_utils.py").write_text("def look(): ...")
    return folder


def test_the_list_is_stored_unchanged(models: Path) -> None:
    look = DisplayOptions(FOUND)

    assert [listed(models, look), listed(models, look), listed(models, look)] == [FOUND] * 3
    assert look.num_looks == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda models: (models / "old" / "bort" / "modeling_bort.py").write_text("class Bart: ..."),
        lambda models: os.utime(models / "old" / "bort" / "modeling_bort.py", ns=(1, 1)),
        lambda models: (models / "old" / "bort" / "more.py").touch(),
        lambda models: (models / "new").mkdir() or (models / "new" / "a.py").touch(),
        lambda models: (models / "old" / "bort" / "modeling_bort.py").unlink(),
        lambda models: (models.parent / "utils" / "import_utils.py").write_text("def look(): return 1"),
        lambda models: file_for(models).write_text("{"),
        lambda models: file_for(models).write_text('{"state": 1}'),
        lambda models: file_for(models).write_text("[]"),
        lambda models: file_for(models).write_bytes(b"\xff"),
    ],
)
def test_a_change_of_any_file_is_seen(models: Path, change: Any) -> None:
    listed(models, DisplayOptions(FOUND))
    change(models)
    look = DisplayOptions({"albert": {}})

    assert listed(models, look) == {"albert": {}}
    assert listed(models, look) == {"albert": {}}
    assert look.num_looks == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"folders": [], "modules": 3}',
        '{"folders": {}, "modules": []}',
        '{"folders": {}, "modules": [["torch", {"a": ["B"]}]]}',
        '{"folders": {}, "modules": [[[], {"a": "Name"}]]}',
        '{"folders":{"a":' * 5000 + "{}" + "}}" * 5000,
        "[" * 100_000,
    ],
    ids=range(6),
)
def test_a_damaged_body_is_looked_for_anew(models: Path, body: str) -> None:
    listed(models, DisplayOptions(FOUND))
    path = file_for(models)
    state = json.loads(path.read_text())["state"]
    path.write_text(f'{{"state": "{state}", "found": {body}}}')

    assert listed(models, DisplayOptions(FOUND)) == FOUND


def test_files_that_can_not_be_looked_after_are_looked_at_every_time(models: Path) -> None:
    (models.parent / "utils" / "import_utils.py").unlink()
    look = DisplayOptions(FOUND)

    assert [listed(models, look), listed(models, look)] == [FOUND] * 2
    assert look.num_looks == 2


def test_every_transformers_has_a_list_of_its_own(models: Path) -> None:
    assert file_for(models) != file_for(models.parent)


def test_without_a_writable_cache_the_list_is_built_every_time(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "file" / "cache"))
    look = DisplayOptions(FOUND)

    assert [listed(models, look), listed(models, look)] == [FOUND] * 2
    assert look.num_looks == 2


@pytest.mark.parametrize("strange", [{"albert": 3}, {("a", "b"): {"c": 4}}, {frozenset({1}): {"a": ["b", "b"]}}])
def test_a_list_of_unknown_form_is_not_stored(models: Path, strange: dict[Any, Any]) -> None:
    assert listed(models, DisplayOptions(strange)) == strange
    assert not file_for(models).exists()


def test_transformers_finds_the_same_with_it_as_without(tmp_path: Path) -> None:
    code = f"""
import builtins, json, sys
if sys.argv[1] == "kept":
    from specgen.loading.libraries import prepare_libraries
    prepare_libraries(False)
opened = []
real = open
def counting(file, *arguments, **options):
    opened.append(str(file))
    return real(file, *arguments, **options)
builtins.open = counting
import transformers
num_opened = sum("modeling_" in name for name in opened)
found = sys.modules["{LOOKER}"].define_import_structure(transformers.__path__[0] + "/models", prefix="models")
told = sorted([sorted(needed), sorted([name, sorted(names)] for name, names in parts.items())]
              for needed, parts in found.items())
print(json.dumps([num_opened > 100, told, sorted(dir(transformers))]))
"""

    def told(how: str) -> Any:
        environment = {**os.environ, "SPECGEN_CACHE": str(tmp_path)}
        words = [sys.executable, "-c", code, how]
        return json.loads(subprocess.run(words, capture_output=True, check=True, env=environment).stdout)

    own, first, second = told("own"), told("kept"), told("kept")

    assert (own[0], first[0], second[0]) == (True, True, False)
    assert own[1:] == first[1:] == second[1:]
    assert sum(len(parts) for _, parts in own[1]) > 1000
