"""Stores measured pass costs on disk, one small file for each machine, model and format they depend on.

The costs only help the first rounds of a run. If a file or the folder is unusable, no costs are known, and the next run
that ends well writes the file again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from specgen.core.errors import SpecgenError
from specgen.storage.atomic_write import replace_file
from specgen.storage.paths import cache_folder, cache_root

FORMAT = 1
MAX_FILES = 64
"""Above this number, the files written longest ago are removed."""
MAX_FILE_BYTES = 65536
MAX_ENTRIES = 128
MAX_SECONDS = 3600.0
MAX_UNCONFIRMED = 5
"""Runs for which a cost is kept without being measured again. A cost that is never checked could block better ones."""
SECONDS_UNTIL_LEFT_OVER = 3600.0

CostKey = Mapping[str, str | int]
"""All that a cost depends on: model, weight format, device, threads, versions."""


class CostStore:
    """A folder of costs, one file for each key.

    Args:
        path: Default: a folder in the cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def read(self, key: CostKey) -> dict[str, float]:
        """Returns seconds by name; empty if none are stored for exactly this key."""
        return {name: seconds for name, (seconds, _) in self._entries(key).items()}

    def write(self, key: CostKey, seconds: Mapping[str, float], confirmed: Iterable[str]) -> None:
        """Stores costs. A failure to write is ignored.

        Args:
            key: What the costs depend on.
            seconds: Seconds by name.
            confirmed: Names measured in this run. Others are kept for `MAX_UNCONFIRMED` runs and then dropped.
        """
        before, confirmed = self._entries(key), set(confirmed)
        costs = {}
        for name, value in seconds.items():
            age = 0 if name in confirmed else before.get(name, (0.0, 0))[1] + 1
            if age <= MAX_UNCONFIRMED and _is_cost(value):
                costs[name] = [value, age]
        document = {"format": FORMAT, "facts": dict(key), "costs": costs}
        with suppress(SpecgenError, OSError):
            folder = cache_folder("costs") if self._path is None else self._path
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / file_name(key), json.dumps(document, allow_nan=False).encode())
            _remove_old_files(folder)

    def _entries(self, key: CostKey) -> dict[str, tuple[float, int]]:
        folder = cache_root() / "costs" if self._path is None else self._path
        path = folder / file_name(key)
        try:
            # Opening a pipe or a device of this name would block.
            if not path.is_file():
                return {}
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            return _parse(json.loads(data), key) if len(data) <= MAX_FILE_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}


def file_name(key: CostKey) -> str:
    """Returns the file name of a key."""
    text = json.dumps(dict(key), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _parse(document: Any, key: CostKey) -> dict[str, tuple[float, int]]:
    """Returns seconds and age by name; empty unless every part of the document is valid and its key is this one."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("facts") != dict(key):
        return {}
    costs = document.get("costs")
    if not isinstance(costs, dict) or len(costs) > MAX_ENTRIES:
        return {}
    entries = {}
    for name, entry in costs.items():
        if not isinstance(entry, list) or len(entry) != 2:
            return {}
        value, age = entry
        if not _is_cost(value) or not isinstance(age, int) or not 0 <= age <= MAX_UNCONFIRMED:
            return {}
        entries[name] = (float(value), age)
    return entries


def _is_cost(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 < value <= MAX_SECONDS


def _remove_old_files(folder: Path) -> None:
    """Removes files above `MAX_FILES`, and temporary files that a killed process left."""
    ages = sorted((path.stat().st_mtime, path) for path in folder.glob("*.json") if path.is_file())
    for _, path in ages[: max(0, len(ages) - MAX_FILES)]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        if path.stat().st_mtime < time() - SECONDS_UNTIL_LEFT_OVER:
            path.unlink(missing_ok=True)
