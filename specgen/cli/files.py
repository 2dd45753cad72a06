"""A file somebody asked for: written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from specgen.errors import OutputError

_OUTPUTS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def check_place(path: Path | None, what: str) -> None:
    """Refuse a file that can't be written before anything is worked for it.

    Args:
        path: None where none was asked for.
        what: Goes into it, for the message.

    Raises:
        OutputError: Its folder does not exist, or it is a folder.
    """
    if path is None:
        return
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise OutputError(f"cannot write {what}: no folder {place.parent}", "make it first")
    if os.path.isdir(place):  # Path's own raises on a name too long, which the writing tells
        raise OutputError(f"cannot write {what}: {path} is a folder", "give a file in it")


def is_stream(path: Path) -> bool:
    """Whether it is no file to replace: a device, a pipe, or an output of this program by another name."""
    return _own_output(path) is not None or (os.path.exists(path) and not os.path.isfile(path))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file, with the permissions of any new one; a link stays one.

    A stream (see `is_stream`) is written to: replacing it would take it from everybody else.

    Raises:
        OutputError: Any step failed; an old file is untouched.
    """
    temporary: str | None = None
    try:
        if is_stream(path):
            own = _own_output(path)
            with open(path if own is None else os.dup(own), "wb") as stream:
                stream.write(data)
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


def _own_output(path: Path) -> int | None:
    """The descriptor that `/dev/stdout`, `/dev/fd/3` or `/proc/self/fd/3` names: opened anew, a file begins anew."""
    name = os.path.abspath(path)
    found = _DESCRIPTOR.fullmatch(name)
    return int(found[1]) if found else _OUTPUTS.get(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
