"""Gives transformers a folder whose JSON files it can read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specgen.core.model_files import read_json
from specgen.loading.weight_files import INDEX_FILE

_FILES = ("config.json", "generation_config.json", INDEX_FILE)


@contextmanager
def readable_folder(folder: Path) -> Iterator[Path]:
    """Yields a model's folder, or one with links to its files and repaired JSON files.

    transformers 5.24 reads plain UTF-8 only, while editors add a byte order mark or write UTF-16; and it requires the
    key `metadata` of an index, which the format does not.

    Raises:
        ModelFileError: A file is damaged.
    """
    repaired = {name: value for name in _FILES if (value := _repaired(folder / name)) is not None}
    if not repaired:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="specgen-") as links:
        for path in folder.iterdir():
            if path.name not in repaired:
                (Path(links) / path.name).symlink_to(path.resolve())
        for name, value in repaired.items():
            (Path(links) / name).write_text(json.dumps(value))
        yield Path(links)


def _repaired(path: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file as transformers can read it; None if it can read the file."""
    if not path.is_file():
        return None
    value = read_json(path)
    if path.name == INDEX_FILE and not isinstance(value.get("metadata"), dict):
        return {**value, "metadata": {}}
    try:
        json.loads(path.read_text("utf-8"))
    except ValueError:
        return value
    return None
