"""A file somebody asked for: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from specgen.core.errors import OutputError

_OUTPUTS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def check_output_path(path: Path | None, what: str) -> None:
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


def is_output_stream(path: Path) -> bool:
    """Whether it is no file to replace: a device, a pipe, or an output of this program by another name."""
    return _own_output(path) is not None or (os.path.exists(path) and not os.path.isfile(path))


def write_output(path: Path, data: bytes) -> None:
    """Replace a file, with the permissions of any new one; a link stays one.

    A stream (see `is_output_stream`) is written to: replacing it would take it from everybody else.

    Raises:
        OutputError: Any step failed; an old file is untouched.
    """
    temporary: str | None = None
    try:
        if is_output_stream(path):
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


def replace_file(path: Path, data: bytes) -> None:
    """Write a private file: into a new one beside it, then over it.

    Raises:
        OutputError: Any step failed; the old file is untouched and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot save {path}: {error.strerror or error}") from error
    # The new file is there whatever a folder says that can't be synced, as on some network disks.
    with contextlib.suppress(OSError):
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
