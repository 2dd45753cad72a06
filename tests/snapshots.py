"""Compares text with a stored snapshot. `SPECGEN_UPDATE_SNAPSHOTS=1 pytest ...` rewrites the snapshots."""

from __future__ import annotations

import os
from pathlib import Path

UPDATES = os.environ.get("SPECGEN_UPDATE_SNAPSHOTS") == "1"


def check_snapshot(path: Path, text: str) -> None:
    """Asserts that the text, ended by a newline, is the content of the file."""
    text = text.rstrip("\n") + "\n"
    if UPDATES:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
