"""Stores the lines typed into chats, for the Up key."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory

from specgen.core.errors import OutputError
from specgen.storage.atomic_write import replace_file

MAX_ENTRIES = 1000
_SEPARATOR = b"\n# specgen\n"


class PrivateHistory(FileHistory):
    """A history file that only its owner can read, with the newest entries of this and earlier chats.

    Lines that start with a space are not stored, as in shells. A file that can't be written is silently ignored.

    Args:
        path: Created when the first line is stored.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        with suppress(OSError):
            self._shorten(path)

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        path = Path(os.fsdecode(self.filename))
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_SEPARATOR + lines.encode("utf-8", "replace"))

    def _shorten(self, path: Path) -> None:
        """Keeps the newest `MAX_ENTRIES` entries once the file has half as many again."""
        blocks = path.read_bytes().split(_SEPARATOR)
        if len(blocks) > MAX_ENTRIES * 3 // 2:
            newest = blocks[-MAX_ENTRIES:]
            with suppress(OutputError):
                replace_file(path, b"".join(_SEPARATOR + block.rstrip(b"\n") + b"\n" for block in newest))
