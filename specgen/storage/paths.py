"""Folders of the program: cache and state."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from specgen.core.errors import LoadError, OutputError
from specgen.core.model_files import reason


def cache_root() -> Path:
    """The cache folder; it need not exist yet."""
    chosen = os.environ.get("SPECGEN_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_cache_path

    return user_cache_path("specgen", appauthor=False)


def cache_folder(*parts: str) -> Path:
    """A folder inside the cache, made if it is missing.

    Raises:
        LoadError: It can't be made.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(
            f"the cache folder {folder} can't be made: {reason(error)}", "name another one in SPECGEN_CACHE"
        ) from error
    return folder


STATE_VARIABLE = "SPECGEN_STATE"
"""Moves the state folder: history and sessions."""


def state_folder() -> Path:
    """Where history and sessions live; may not exist yet."""
    import platformdirs

    chosen = os.environ.get(STATE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_state_path("specgen")


def private_folder(path: Path) -> Path:
    """Make a folder only its owner can look into, and its parents where they are missing.

    Raises:
        OutputError: It can't be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path
