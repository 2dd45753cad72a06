"""A file somebody asked for: written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from specgen.errors import OutputError


def check_folder_of(path: Path | None) -> None:
    """Refuse a file that can't be written before anything is worked for it.

    Raises:
        OutputError: Its folder does not exist.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: no folder {path.absolute().parent}", "make it first")


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file, with the permissions of any new one; a link stays one.

    What is no file, such as /dev/null or a pipe, is written to: replacing it would take it from everybody else.

    Raises:
        OutputError: Any step failed; an old file is untouched.
    """
    temporary: str | None = None
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            path.write_bytes(data)
            return
        place = Path(os.path.realpath(path))
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, place)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
