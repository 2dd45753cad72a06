"""Figures of a run on a card: a printed line and a line of JSON each, so that a run that is cut short loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Figure = dict[str, Any]
"""`part`, `name`, and the fields of a figure."""
Say = Callable[..., None]
"""`say(name, **fields)` reports a figure."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a part of the run gets.

    Args:
        device: Where it measures.
        is_tiny: Models and counts are as small as possible: a rehearsal, whose figures mean nothing.
        say: Reports a figure.
    """

    device: torch.device
    is_tiny: bool
    say: Say

    def pick(self, real: Any, tiny: Any) -> Any:
        """Returns one of two settings."""
        return tiny if self.is_tiny else real


class Report:
    """Prints the figures of a part, and appends them to a file.

    Args:
        path: JSON lines.
        part: Number of the part.
    """

    def __init__(self, path: Path, part: int) -> None:
        self._path = path
        self._part = part

    def say(self, name: str, **fields: Any) -> None:
        """Reports a figure."""
        print(self._part, name, " ".join(f"{key}={_shown(value)}" for key, value in fields.items()), flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self._part, "name": name, **fields}) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_figures(paths: Sequence[Path]) -> list[Figure]:
    """Reads figures back. A last line that was cut off is left out."""
    found: list[Figure] = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def fields_of(figures: Sequence[Figure], name: str, **wanted: Any) -> Figure | None:
    """Returns the last figure of a name with these fields; None if there is none."""
    matching = [
        figure
        for figure in figures
        if figure["name"] == name and all(figure.get(key) == value for key, value in wanted.items())
    ]
    return matching[-1] if matching else None
