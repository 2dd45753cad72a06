"""One writer per session file: a lock that dies with its process, and the name of the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from specgen.errors import OutputError, SettingsError


class SessionInUse(SettingsError):
    """Another chat writes this session."""

    code = "session_in_use"


def locked(lock_path: Path, path: Path) -> int:
    """Lock a session for this process.

    Args:
        lock_path: A file beside the session: the session itself can't carry the lock, since it gets replaced.
        path: The session, for messages.

    Returns:
        The open lock file, with our process id in it. The lock ends when it is closed, or with the process.

    Raises:
        SessionInUse: Another process holds it.
        OutputError: The lock file can't be made.
    """
    try:
        while True:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still_there(descriptor, lock_path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                    return descriptor
                os.close(descriptor)
            except BlockingIOError as error:
                owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
                os.close(descriptor)
                raise SessionInUse(
                    f"the session {path.stem} is in use by process {owner}",
                    "end that chat first, or start a new session",
                ) from error
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error.strerror or error}") from error


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        there, ours = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
