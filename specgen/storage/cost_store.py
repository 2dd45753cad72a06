"""What passes cost on this machine, kept from run to run: facts and seconds in, a small file each, and back. No torch.

Only a help for the first rounds: whatever is wrong with a file or the folder, the answer is "nothing known", and the
next run that ends well writes it anew.
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
"""Beyond that the file not written for the longest time goes."""
MAX_FILE_BYTES = 65536
MAX_ENTRIES = 128
MAX_SECONDS = 3600.0
MAX_UNCONFIRMED = 5
"""Runs without measuring an entry again after which it is forgotten: a figure that keeps others from being tried."""
SECONDS_UNTIL_LEFT_OVER = 3600.0

Facts = Mapping[str, str | int]
"""All that a cost depends on: model, weight format, device, threads, versions."""


class CostStore:
    """The folder of costs, one file for each set of facts.

    Args:
        path: Default: a folder in the cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def read(self, facts: Facts) -> dict[str, float]:
        """Seconds by name; empty if there are none for exactly these facts."""
        return {name: seconds for name, (seconds, _) in self._entries(facts).items()}

    def write(self, facts: Facts, seconds: Mapping[str, float], confirmed: Iterable[str]) -> None:
        """Remember what was measured; what can't be written is forgotten without a word.

        Args:
            facts: What the costs depend on.
            seconds: Seconds by name.
            confirmed: The names measured in this run; others are kept for a few runs and then dropped.
        """
        before, confirmed = self._entries(facts), set(confirmed)
        kept = {}
        for name, value in seconds.items():
            age = 0 if name in confirmed else before.get(name, (0.0, 0))[1] + 1
            if age <= MAX_UNCONFIRMED and _is_cost(value):
                kept[name] = [value, age]
        document = {"format": FORMAT, "facts": dict(facts), "costs": kept}
        with suppress(SpecgenError, OSError):
            folder = cache_folder("costs") if self._path is None else self._path
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / file_name(facts), json.dumps(document, allow_nan=False).encode())
            _tidy(folder)

    def _entries(self, facts: Facts) -> dict[str, tuple[float, int]]:
        folder = cache_root() / "costs" if self._path is None else self._path
        path = folder / file_name(facts)
        try:
            # A pipe or a device under this name would be waited for.
            if not path.is_file():
                return {}
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            return _checked(json.loads(data), facts) if len(data) <= MAX_FILE_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}


def file_name(facts: Facts) -> str:
    """The file of a set of facts."""
    text = json.dumps(dict(facts), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _checked(document: Any, facts: Facts) -> dict[str, tuple[float, int]]:
    """The entries of a document that is one of ours, about these facts, and sane; else none at all."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("facts") != dict(facts):
        return {}
    costs = document.get("costs")
    if not isinstance(costs, dict) or len(costs) > MAX_ENTRIES:
        return {}
    found = {}
    for name, entry in costs.items():
        if not isinstance(entry, list) or len(entry) != 2:
            return {}
        value, age = entry
        if not _is_cost(value) or not isinstance(age, int) or not 0 <= age <= MAX_UNCONFIRMED:
            return {}
        found[name] = (float(value), age)
    return found


def _is_cost(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 < value <= MAX_SECONDS


def _tidy(folder: Path) -> None:
    """Bound the number of files; remove what a killed program left."""
    ages = sorted((path.stat().st_mtime, path) for path in folder.glob("*.json") if path.is_file())
    for _, path in ages[: max(0, len(ages) - MAX_FILES)]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        if path.stat().st_mtime < time() - SECONDS_UNTIL_LEFT_OVER:
            path.unlink(missing_ok=True)
