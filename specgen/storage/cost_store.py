"""Stores measured pass costs on disk, one small file for each machine, model and format they depend on.

The costs only help the first rounds of a run. If a file or the folder is unusable, no costs are known, and the next run
that ends well writes the file again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from specgen.core.errors import SpecgenError
from specgen.storage.atomic_write import replace_file
from specgen.storage.folders import cache_root

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
        self._folder = cache_root() / "costs" if path is None else path

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
            if _is_entry(value, age):
                costs[name] = [value, age]
        document = {"format": FORMAT, "facts": dict(key), "costs": costs}
        with suppress(SpecgenError, OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / file_name(key), json.dumps(document, allow_nan=False).encode())
            self._remove_old_files()

    def find(self, facts: CostKey) -> dict[str, float]:
        """Returns seconds by name of the newest file whose key contains these facts; empty if there is none."""
        with suppress(OSError):
            ages = sorted(((path.stat().st_mtime, path) for path in self._folder.glob("*.json")), reverse=True)
            for _, path in ages:
                with suppress(OSError, RecursionError, LookupError, TypeError, ValueError, AttributeError):
                    key = json.loads(path.read_bytes())["facts"]
                    if facts.items() <= key.items() and key.get("vocab") == facts.get("vocab"):
                        return self.read(key)
        return {}

    def _entries(self, key: CostKey) -> dict[str, tuple[float, int]]:
        """Returns seconds and age by name; empty unless every part of the file is valid and its key is this one."""
        path = self._folder / file_name(key)
        try:
            # Opening a pipe or a device of this name would block.
            if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
                return {}
            document = json.loads(path.read_bytes())
            entries = {name: (seconds, age) for name, (seconds, age) in document["costs"].items()}
            is_valid = document["format"] == FORMAT and document["facts"] == dict(key) and len(entries) <= MAX_ENTRIES
        except (OSError, RecursionError, LookupError, TypeError, ValueError, AttributeError):
            return {}
        return entries if is_valid and all(_is_entry(*entry) for entry in entries.values()) else {}

    def _remove_old_files(self) -> None:
        """Removes files above `MAX_FILES`, and temporary files that a killed process left."""
        ages = sorted((path.stat().st_mtime, path) for path in self._folder.glob("*.json") if path.is_file())
        for _, path in ages[: max(0, len(ages) - MAX_FILES)]:
            path.unlink(missing_ok=True)
        for path in self._folder.glob(".*.tmp"):
            if path.stat().st_mtime < time() - SECONDS_UNTIL_LEFT_OVER:
                path.unlink(missing_ok=True)


def file_name(key: CostKey) -> str:
    """Returns the file name of a key."""
    text = json.dumps(dict(key), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _is_entry(seconds: Any, age: Any) -> bool:
    is_cost = type(seconds) in (int, float) and 0 < seconds <= MAX_SECONDS
    return is_cost and type(age) is int and 0 <= age <= MAX_UNCONFIRMED
