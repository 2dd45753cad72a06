"""Locates and creates the folders of the program: the cache, and the state (input history and saved chats)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from specgen.core.errors import LoadError, OutputError
from specgen.core.model_files import reason

CACHE_VARIABLE = "SPECGEN_CACHE"
STATE_VARIABLE = "SPECGEN_STATE"


def cache_root() -> Path:
    """Returns the cache folder, which may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_cache_path

    return user_cache_path("specgen", appauthor=False)


def cache_folder(*parts: str) -> Path:
    """Returns a folder inside the cache, created if it is missing.

    Raises:
        LoadError: It cannot be created.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(
            f"cannot create the cache folder {folder}: {reason(error)}", f"choose another one with {CACHE_VARIABLE}"
        ) from error
    return folder


def state_folder() -> Path:
    """Returns the folder of input history and saved chats, which may not exist yet."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen)
    from platformdirs import user_state_path

    return user_state_path("specgen")


def private_folder(path: Path) -> Path:
    """Creates a folder that only its owner can read, and its missing parents; returns it.

    Raises:
        OutputError: It cannot be created.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error
    return path
