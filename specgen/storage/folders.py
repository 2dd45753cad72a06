"""Locates and creates the program's folders: the cache (costs, converted models) and the state (history, saved chats).

An entry of the cache has one writer at a time, and is made in a staging folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from specgen.core.errors import LoadError, OutputError
from specgen.core.model_files import reason
from specgen.core.progress import ProgressListener
from specgen.core.units import format_size
from specgen.storage.lock import wait_for_lock

CACHE_VARIABLE = "SPECGEN_CACHE"
STATE_VARIABLE = "SPECGEN_STATE"
NO_FOLDER = Path(os.devnull, "no-home-folder")
"""Stands for a folder of a user without a home, as in containers with any user id: nothing is there or can be made."""
_OTHER_FOLDER = f"choose another cache folder with {CACHE_VARIABLE}"


def cache_root() -> Path:
    """Returns the cache folder, which may not exist yet; `NO_FOLDER` if the user has no home folder."""
    return _folder(CACHE_VARIABLE, "user_cache_path")


def cache_folder(*parts: str) -> Path:
    """Returns a folder inside the cache, created if it is missing.

    Raises:
        LoadError: It can't be created.
    """
    folder = cache_root().joinpath(*parts)
    if NO_FOLDER in folder.parents:
        raise LoadError("there is no home folder for the cache", f"set {CACHE_VARIABLE} or HOME to a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(
            f"can't create the cache folder {folder}: {reason(error)}", f"choose another one with {CACHE_VARIABLE}"
        ) from error
    return folder


def state_folder() -> Path:
    """Returns the folder of input history and saved chats, as `cache_root` does."""
    return _folder(STATE_VARIABLE, "user_state_path")


def _folder(variable: str, standard: Literal["user_cache_path", "user_state_path"]) -> Path:
    if chosen := os.environ.get(variable):
        path = Path(os.path.expanduser(chosen))
        return NO_FOLDER if path.parts[:1] == ("~",) else path
    import platformdirs

    try:
        path = Path(getattr(platformdirs, standard)("specgen", appauthor=False))
    except RuntimeError:  # older versions return a path that begins with `~`
        return NO_FOLDER
    return NO_FOLDER if path.parts and path.parts[0].startswith("~") else path


def private_folder(path: Path) -> Path:
    """Creates a folder that only its owner can read, and its missing parents; returns it.

    Raises:
        OutputError: It can't be created.
    """
    if NO_FOLDER in path.parents:
        raise OutputError(f"there is no home folder for {path.name}", f"set {STATE_VARIABLE} or HOME to a folder")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise OutputError(f"can't create the folder {path}: {error.strerror or error}") from error
    return path


@contextmanager
def single_writer(lock_path: Path, progress: ProgressListener) -> Iterator[None]:
    """Runs the block while this process alone writes a cache entry; waits for another process that writes it.

    Raises:
        LoadError: The lock file can't be written.
    """
    try:
        lock = wait_for_lock(lock_path, lambda: progress.stage("waiting for another specgen to prepare the same model"))
    except OutputError as error:
        raise LoadError(error.message, _OTHER_FOLDER) from error
    with lock:
        yield


@contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """Yields a new hidden folder in `parent` and removes it at the end of the block.

    Call it under the lock of `name`: folders that a killed process left for this name are removed first.

    Raises:
        LoadError: The folder can't be created.
    """
    for left_over in parent.glob(f".{name}.*"):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    except OSError as error:
        raise disk_error(error, parent) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuses work that the disk has no space for.

    Raises:
        LoadError: Fewer than `needed_bytes` are free.
    """
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _disk_full(folder, needed_bytes)


def disk_error(error: OSError, folder: Path, needed_bytes: int | None = None) -> LoadError:
    """Returns the error for a failed write below `folder`."""
    if is_disk_full(error):
        return _disk_full(folder, needed_bytes)
    return LoadError(f"can't write to {folder}: {reason(error)}", _OTHER_FOLDER)


def is_disk_full(error: BaseException) -> bool:
    """Returns whether a write failed for lack of space; safetensors says so only in the text of its own exception."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(text in str(error) for text in ("No space left", "os error 28", "os error 122", "os error 27"))


def _disk_full(folder: Path, needed_bytes: int | None) -> LoadError:
    needed = "" if needed_bytes is None else f", {format_size(needed_bytes)} needed"
    free = format_size(shutil.disk_usage(folder if folder.exists() else folder.parent).free)
    return LoadError(
        f"the disk of {folder} is full: {free} free{needed}",
        f"free some space, or use another disk with {CACHE_VARIABLE}",
    )
