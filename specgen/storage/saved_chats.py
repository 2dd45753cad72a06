"""Loads and saves chat sessions, one file each, that at most one process writes at a time.

A file is only ever replaced atomically. A file that can't be read is renamed, and never overwritten.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from specgen.core.errors import OutputError, SettingsError
from specgen.storage.atomic_write import replace_file
from specgen.storage.folders import private_folder, state_folder
from specgen.storage.lock import FileLock, LockedError
from specgen.storage.transcript import Transcript, TranscriptError, from_json, to_json

SUFFIX = ".json"
MAX_SESSION_BYTES = 64 * 1024 * 1024
LAST = "last"
"""The name that means the session saved last."""

_NAME = re.compile(r"[\w][\w .+@-]{0,99}")


class SessionSetAside(Exception):
    """A file could not be read as a session and was renamed. Its text is the message for the user."""


class SessionInUse(SettingsError):
    """Another chat, the process `owner`, writes this session."""

    code = "session_in_use"

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"the session {path.stem} is in use by process {owner}", "end that chat first, or start a new session"
        )


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session in the folder; `saved` is when it was last saved, in seconds since 1970."""

    name: str
    saved: float


class SessionFolder:
    """The saved sessions of a user.

    Args:
        path: Created when the first session is saved.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = state_folder() / "sessions" if path is None else path

    def make(self) -> None:
        """Creates the folder.

        Raises:
            OutputError: It can't be created.
        """
        private_folder(self.path)

    def entries(self) -> list[SessionEntry]:
        """Lists all sessions, the one saved last first; empty if the folder can't be read."""
        try:
            entries = [
                SessionEntry(path.stem, path.stat().st_mtime)
                for path in self.path.iterdir()
                if path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()
            ]
        except OSError:
            return []
        return sorted(entries, key=lambda entry: (-entry.saved, entry.name))

    def path_of(self, name: str) -> Path:
        """Returns the file of a name: a session in this folder, or any file if the name has a `/` or ends in .json.

        Raises:
            SettingsError: The name is invalid.
        """
        if "/" in name or name.endswith(SUFFIX):
            return Path(os.path.expanduser(name))
        if not _NAME.fullmatch(name) or name == LAST:
            raise SettingsError(f"invalid session name {name!r}", "use letters, digits and -, or a path with a /")
        return self.path / f"{name}{SUFFIX}"

    def existing(self, name: str) -> Path:
        """Returns the file of an existing session.

        Args:
            name: A name as in `path_of`, or `last`.

        Raises:
            SettingsError: The session does not exist.
        """
        entries = self.entries()
        if name == LAST:
            if not entries:
                raise SettingsError("there is no saved session to resume", "start one: specgen chat")
            return self.path / f"{entries[0].name}{SUFFIX}"
        path = self.path_of(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, [entry.name for entry in entries], n=1)
            hint = f"did you mean {near[0]}?" if near else "list them with specgen --list sessions, or /sessions"
            raise SettingsError(f"there is no saved session {name}", hint)
        return path

    def fresh(self, now: datetime) -> SessionFile:
        """Returns a new session under an unused name.

        Raises:
            OutputError: The folder can't be created or written to.
        """
        self.make()
        return SessionFile(self.path / f"{now:%Y-%m-%d}-{secrets.token_hex(3)}{SUFFIX}")


class SessionFile:
    """A session that only this process writes, until it is closed.

    Args:
        path: The file, which may not exist yet.

    Raises:
        SessionInUse: Another process has it open.
        OutputError: Its folder can't be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        except LockedError as error:
            raise SessionInUse(path, error.owner) from error
        for left_over in path.parent.glob(f".{path.name}.*.tmp"):
            left_over.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        """The name for `--resume`."""
        return self.path.name.removesuffix(SUFFIX)

    def load(self) -> Transcript:
        """Reads the session.

        Raises:
            SessionSetAside: The file is damaged or too new, and has been renamed.
            OutputError: It can't be read or renamed.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_SESSION_BYTES + 1)
            if len(data) > MAX_SESSION_BYTES:
                raise TranscriptError(f"it is larger than {MAX_SESSION_BYTES >> 20} MiB")
            return from_json(data)
        except TranscriptError as error:
            raise SessionSetAside(f"can't read {self.path}: {error}; renamed to {self._set_aside()}") from error
        except OSError as error:
            raise OutputError(f"can't read {self.path}: {error.strerror or error}") from error

    def save(self, transcript: Transcript) -> None:
        """Replaces the session.

        Raises:
            OutputError: It can't be written. The old session is unchanged.
        """
        replace_file(self.path, to_json(transcript))

    def close(self) -> None:
        """Lets other processes write the session. Can be called again."""
        self._lock.release(remove=True)

    def _set_aside(self) -> str:
        """Renames the file and returns its new name."""
        base = f"{self.path.name}.corrupt-{datetime.now():%Y-%m-%d}"
        names = (base if index == 0 else f"{base}-{index}" for index in range(1000))
        target = next(path for path in map(self.path.with_name, names) if not path.exists())
        try:
            os.rename(self.path, target)
        except OSError as error:
            message = f"{self.path} is damaged and can't be renamed: {error.strerror or error}"
            raise OutputError(message, "move it away, or start without --resume") from error
        return target.name
