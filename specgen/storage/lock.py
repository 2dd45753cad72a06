"""Locks files, so that one process at a time writes what they guard. The kernel releases the locks of a dead process.

`flock` directly, because filelock truncates the file it waits for (up to 3.29), so that the owner's process id is lost,
and has changed twice whether a released lock file stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from specgen.core.errors import OutputError

POLL_SECONDS = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems answer that have no locks, as NFS without its lock daemon."""


class LockedError(Exception):
    """Another process, or another lock of this one, owns the lock.

    Args:
        owner: Its process id, or `unknown`.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(f"locked by process {owner}")
        self.owner = owner


class FileLock:
    """An exclusive lock, acquired on construction and released by `release`, `with`, or the end of the process.

    Args:
        path: The lock file, which contains the owner's process id. It differs from the file that it guards: a file
            that gets replaced can't carry its own lock.

    Raises:
        LockedError: The lock has an owner.
        OutputError: The lock file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        try:
            while self._descriptor is None:
                self._descriptor = _try_lock(path)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            hint = "create the folder first" if isinstance(error, FileNotFoundError) else None
            raise OutputError(f"can't write to {path.parent}: {error.strerror or error}", hint) from error

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock and optionally removes its file. Can be called again."""
        if self._descriptor is None:
            return
        if remove:
            # Removed before the release: a process that waits for this lock notices and opens the new file.
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def wait_for_lock(path: Path, on_wait: Callable[[], None]) -> FileLock:
    """Acquires a lock as soon as its owner releases it.

    Args:
        path: The lock file.
        on_wait: Called once if the lock has an owner.

    Raises:
        OutputError: The lock file can't be written.
    """
    is_waiting = False
    while True:
        try:
            return FileLock(path)
        except LockedError:
            if not is_waiting:
                on_wait()
            is_waiting = True
            time.sleep(POLL_SECONDS)


def _try_lock(path: Path) -> int | None:
    """Returns the locked descriptor; None if an owner that released the lock removed the file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError as error:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise LockedError(owner) from error
    except OSError as error:
        # Without locks two programs may do the same work twice; each replaces a file or folder as a whole.
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
