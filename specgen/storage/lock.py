"""One writer per session file or folder: a lock that dies with its process, and the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from specgen.core.errors import OutputError, SettingsError


def locked(lock_path: Path, in_use: Callable[[str], SettingsError]) -> int:
    """Lock something for this process.

    Args:
        lock_path: A file beside it or in it: what gets replaced can't carry the lock itself.
        in_use: Makes the error to raise, out of the process that holds the lock.

    Returns:
        The open lock file, with our process id in it. The lock ends when it is closed, or with the process.

    Raises:
        SettingsError: Another process holds it.
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
                raise in_use(owner) from error
    except OSError as error:
        hint = "make the folder first" if isinstance(error, FileNotFoundError) else None
        raise OutputError(f"cannot write to {lock_path.parent}: {error.strerror or error}", hint) from error


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        there, ours = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
