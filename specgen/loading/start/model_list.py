"""Caches the list of names exported by transformers' 1,700 model files.

transformers builds this list at each start, which takes 0.5 s. It changes only with the files, so it is stored in the
cache together with the sizes and times of all files it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from specgen.core.errors import SpecgenError
from specgen.storage.atomic_write import replace_file
from specgen.storage.paths import cache_folder, cache_root

LOOKER = "transformers.utils.import_utils"
LOOK = "create_import_structure_from_path"

Found = dict[Any, Any]
"""Contents by folder; and modules with the names they export, by the libraries they need."""


@contextmanager
def model_list_kept(module: ModuleType) -> Iterator[None]:
    """Replaces the function that builds the list by one that reads the cache, after the import of its module."""
    yield
    look = getattr(module, LOOK, None)
    if look is None or module.__file__ is None:
        return
    models = Path(module.__file__).parent.parent / "models"

    # The list is requested twice: by the folder's name and by its __init__.py.
    names = {str(models), str(models / "__init__.py")}
    find_all = lru_cache(partial(listed, models, look))

    @lru_cache
    def find(module_path: str | Path) -> Found:
        found: Found = find_all() if str(module_path) in names else look(module_path)
        return found

    setattr(module, LOOK, find)


def listed(models: Path, look: Callable[[str], Found]) -> Found:
    """Returns the list of a folder, from the cache if no file has changed.

    Args:
        models: transformers' folder of models.
        look: Builds the list from the files.
    """
    try:
        path, state = file_for(models), _state_of(models)
    except OSError:
        return look(str(models))
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        kept = json.loads(path.read_bytes())
        if kept["state"] == state and (found := _from_json(kept["found"])):
            return found
    found = look(str(models))
    with suppress(SpecgenError, ValueError, TypeError, AttributeError, RecursionError):
        document = _to_json(found)
        # A list of unknown form is not stored.
        if _from_json(document) == found:
            cache_folder()
            replace_file(path, json.dumps({"state": state, "found": document}).encode())
    return found


def file_for(models: Path) -> Path:
    """Returns the cache file of a folder: each installation of transformers has its own."""
    return cache_root() / f"transformers-{hashlib.sha256(str(models).encode()).hexdigest()[:12]}.json"


def _state_of(models: Path) -> str:
    """Returns a digest of the sizes and times of all files that the list depends on."""
    digest = hashlib.sha256()
    looker = models.parent / "utils" / "import_utils.py"
    for path, entry in [(str(looker), looker.stat()), *_files(models)]:
        digest.update(f"{path} {entry.st_size} {entry.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                yield entry.path, entry.stat()
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _files(Path(entry.path))


def _to_json(found: Found) -> dict[str, Any]:
    return {
        "folders": {name: _to_json(inside) for name, inside in found.items() if isinstance(name, str)},
        "modules": [
            [sorted(needed), {name: sorted(exported) for name, exported in modules.items()}]
            for needed, modules in found.items()
            if not isinstance(needed, str)
        ],
    }


def _from_json(document: dict[str, Any]) -> Found:
    inside = {name: _from_json(part) for name, part in document["folders"].items()}
    modules = {
        frozenset(_words(needed)): {name: set(_words(exported)) for name, exported in names.items()}
        for needed, names in document["modules"]
    }
    return {**inside, **modules}


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TypeError(f"{value!r} is not a list of strings")
    return value
