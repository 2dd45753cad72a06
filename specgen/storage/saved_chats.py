"""Session files: a name in, a transcript out, and back. Owns the folder, its locks and the way a file is replaced.

A file is only ever replaced whole: after a crash at any point the old or the new session is there. One that can't be
read is set aside under another name, and nothing ever overwrites it.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from specgen import __version__
from specgen.core.errors import OutputError, SettingsError
from specgen.storage.atomic_write import replace_file
from specgen.storage.lock import locked
from specgen.storage.paths import private_folder, state_folder
from specgen.storage.transcript import Transcript, TranscriptError, from_json, to_json

SUFFIX = ".json"
MAX_SESSION_BYTES = 64 * 1024 * 1024
LAST = "last"

_NAME = re.compile(r"[\w][\w .+@-]{0,99}")


class SessionSetAside(Exception):
    """A file could not be read as a session and was renamed. Its text is the message for the user."""


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session in the folder: its name and when it was saved last, in seconds since 1970."""

    name: str
    saved: float


class SessionFolder:
    """The saved sessions of a user.

    Args:
        path: Made when the first session is saved.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = state_folder() / "sessions" if path is None else path

    def make(self) -> None:
        """Make the folder.

        Raises:
            OutputError: It can't be made.
        """
        private_folder(self.path)

    def entries(self) -> list[SessionEntry]:
        """All sessions, the one saved last first. An unreadable folder has none."""
        found = []
        try:
            with os.scandir(self.path) as items:
                for item in items:
                    if item.name.endswith(SUFFIX) and not item.name.startswith(".") and item.is_file():
                        found.append(SessionEntry(item.name.removesuffix(SUFFIX), item.stat().st_mtime))
        except OSError:
            return []
        return sorted(found, key=lambda entry: (-entry.saved, entry.name))

    def path_of(self, name: str) -> Path:
        """The file a name stands for: a session of the folder, or any file if the name has a `/` or ends in .json.

        Raises:
            SettingsError: It is no name for a file.
        """
        if "/" in name or name.endswith(SUFFIX):
            return Path(os.path.expanduser(name))
        if not _NAME.fullmatch(name) or name == LAST:
            raise SettingsError(f"{name!r} is no session name", "use letters, digits and -, or a path with a /")
        return self.path / f"{name}{SUFFIX}"

    def existing(self, name: str) -> Path:
        """The file of a session that is there; `last` is the one saved last.

        Raises:
            SettingsError: There is none.
        """
        entries = self.entries()
        if name == LAST:
            if not entries:
                raise SettingsError("there is no saved session to resume", "start one: specgen chat")
            return self.path / f"{entries[0].name}{SUFFIX}"
        path = self.path_of(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, [entry.name for entry in entries], n=1)
            hint = f"did you mean {near[0]}?" if near else "specgen --list sessions shows them, and /sessions in a chat"
            raise SettingsError(f"there is no saved session {name}", hint)
        return path

    def fresh(self, now: datetime) -> SessionFile:
        """A new session under a name nobody uses.

        Raises:
            OutputError: The folder can't be made or written to.
        """
        self.make()
        return SessionFile(self.path / f"{now:%Y-%m-%d}-{secrets.token_hex(3)}{SUFFIX}")


class SessionFile:
    """One session that this process alone writes, until it is closed.

    Args:
        path: The file; need not exist.

    Raises:
        SessionInUse: Another process has it open.
        OutputError: Its folder can't be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._lock: int | None = locked(self._lock_path, partial(SessionInUse, path))
        for left_over in path.parent.glob(f".{path.name}.*.tmp"):
            left_over.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        """The name that `--resume` takes."""
        return self.path.name.removesuffix(SUFFIX)

    def load(self) -> Transcript:
        """Read the session.

        Raises:
            SessionSetAside: It is damaged or too new, and now lies under another name.
            OutputError: It can't be read or set aside.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_SESSION_BYTES + 1)
            if len(data) > MAX_SESSION_BYTES:
                raise TranscriptError(f"it is larger than {MAX_SESSION_BYTES >> 20} MiB")
            return from_json(data)
        except TranscriptError as error:
            raise SessionSetAside(f"{self.path} can't be read: {error}; it is kept as {self._set_aside()}") from error
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from error

    def save(self, transcript: Transcript) -> None:
        """Replace the session, whole or not at all.

        Raises:
            OutputError: It can't be written; the old one is untouched.
        """
        replace_file(self.path, to_json(transcript, __version__))

    def close(self) -> None:
        """Let others write it. Can be called again."""
        if self._lock is not None:
            # Unlinked while locked: whoever waits for this lock finds another file under its name and takes that.
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _set_aside(self) -> str:
        base = f"{self.path.name}.corrupt-{datetime.now():%Y-%m-%d}"
        names = (base if index == 0 else f"{base}-{index}" for index in range(1000))
        target = next(path for path in map(self.path.with_name, names) if not path.exists())
        try:
            os.rename(self.path, target)
        except OSError as error:
            message = f"{self.path} is damaged, and can't be renamed: {error.strerror or error}"
            raise OutputError(message, "move it away, or start without --resume") from error
        return target.name


class SessionInUse(SettingsError):
    """Another chat writes this session.

    Args:
        path: The session.
        owner: The other process.
    """

    code = "session_in_use"

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"the session {path.stem} is in use by process {owner}", "end that chat first, or start a new session"
        )
