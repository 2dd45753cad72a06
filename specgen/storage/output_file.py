"""Writes the files that a user names with `-o`: atomically, or straight into a device, a pipe or an open stream."""

from __future__ import annotations

import os
import re
from pathlib import Path

from specgen.core.errors import OutputError
from specgen.storage.atomic_write import USER_FILE, replace_file

_STANDARD_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR_PATH = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def check_output_path(path: Path | None, what: str) -> None:
    """Refuses a path that cannot be written, before any work is done for it.

    Args:
        path: None: no file was requested.
        what: The content, for the message.

    Raises:
        OutputError: The folder of the path does not exist, or the path is a folder.
    """
    if path is None:
        return
    resolved = Path(os.path.realpath(path))
    if not resolved.parent.is_dir():
        raise OutputError(f"cannot write {what}: no folder {resolved.parent}", "create the folder first")
    if os.path.isdir(resolved):  # Path.is_dir raises on a name that is too long; writing reports that
        raise OutputError(f"cannot write {what}: {path} is a folder", "give a file in it")


def is_output_stream(path: Path) -> bool:
    """Returns whether the path is a device, a pipe or an open stream of this program, which cannot be replaced."""
    return _descriptor_of(path) is not None or (os.path.exists(path) and not os.path.isfile(path))


def write_output(path: Path, data: bytes) -> None:
    """Replaces the file that the path or its link points to; writes into a stream (see `is_output_stream`).

    Raises:
        OutputError: Any step failed. An old file is unchanged.
    """
    if not is_output_stream(path):
        replace_file(Path(os.path.realpath(path)), data, USER_FILE)
        return
    try:
        descriptor = _descriptor_of(path)
        with open(path if descriptor is None else os.dup(descriptor), "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _descriptor_of(path: Path) -> int | None:
    """Returns the 3 of `/dev/fd/3`. The descriptor itself is used: opening the path again would start at byte 0."""
    name = os.path.abspath(path)
    match = _DESCRIPTOR_PATH.fullmatch(name)
    return int(match[1]) if match else _STANDARD_STREAMS.get(name)
