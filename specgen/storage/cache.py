"""The folder of converted models: where it is, one writer at a time, entries that appear whole or not at all.

No torch. `SPECGEN_CACHE` names another folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specgen.core.errors import LoadError
from specgen.core.model_files import reason
from specgen.core.progress import ProgressListener
from specgen.core.units import format_size


@contextmanager
def single_writer(path: Path, progress: ProgressListener) -> Iterator[None]:
    """Hold the lock file `path`; a second program waits here until the first is done.

    The lock belongs to the process: one that was killed holds nothing, and the file it leaves is harmless.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.stage("waiting for another specgen that prepares the same model")
        lock.acquire(timeout=-1, poll_interval=0.1)
    except OSError as error:
        raise LoadError(
            f"{path} can't be written: {reason(error)}", "name another cache folder in SPECGEN_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A fresh hidden folder in `parent`, gone at the end of the block whatever happens.

    Call it under the lock of `name`: folders an earlier, killed program left for it are removed first.
    """
    for left_over in parent.glob(f".{name}.*"):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    except OSError as error:
        raise disk_error(error, parent, None) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, final: Path) -> None:
    """Make a finished folder visible under its final name: all of it or nothing, also if the power fails."""
    for path in [*folder.iterdir(), folder]:
        _sync(path)
    if final.exists():  # an entry somebody emptied: it is no use to anyone
        shutil.rmtree(final)
    os.replace(folder, final)
    _sync(final.parent)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin what the disk can't hold.

    Raises:
        LoadError: Fewer than `needed_bytes` are free.
    """
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _disk_full(folder, needed_bytes)


def disk_error(error: OSError, folder: Path, needed_bytes: int | None) -> LoadError:
    """The error for a failed write below `folder`."""
    if is_disk_full(error):
        return _disk_full(folder, needed_bytes)
    return LoadError(f"{folder} can't be written: {reason(error)}", "name another cache folder in SPECGEN_CACHE")


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; safetensors tells it only in the text of its own exception."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(text in str(error) for text in ("No space left", "os error 28", "os error 122", "os error 27"))


def _disk_full(folder: Path, needed_bytes: int | None) -> LoadError:
    needed = "" if needed_bytes is None else f", {format_size(needed_bytes)} needed"
    free = format_size(shutil.disk_usage(folder if folder.exists() else folder.parent).free)
    return LoadError(
        f"the disk of {folder} is full: {free} free{needed}", "free some space, or name another disk in SPECGEN_CACHE"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
