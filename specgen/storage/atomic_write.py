"""Replaces files and publishes folders atomically: a reader, or a crash at any point, sees the old content or the new.

New content is written under a hidden temporary name in the same folder, synced to disk, and renamed. A file that a user
names with `-o` may also be a device, a pipe or an open stream, which is written directly.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specgen.core.errors import OutputError

USER_FILE = 0o666
"""Mode of files that a user requested; the umask applies."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""What file systems answer that can't sync a folder; EBADF is virtiofs's. EIO is a real failure."""
_STANDARD_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR_PATH = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file, by default with one that only its owner may read. A symbolic link is replaced, not followed.

    Raises:
        OutputError: Any step failed. The old file is unchanged and the temporary file is removed.
    """
    try:
        with replacement(path) as temporary:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, mode)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`; the block writes and syncs that file, then it replaces `path`.

    If the block or the replacement raises, the temporary file is removed and the error passes on.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    # The new file is in place even if the folder can't be synced, as on some network disks.
    with suppress(OSError):
        sync(path.parent)


def publish_folder(folder: Path, final: Path) -> None:
    """Syncs a finished folder with its files, then renames it to its final name on the same disk."""
    for path in [*folder.iterdir(), folder]:
        sync(path)
    if final.exists():  # an incomplete entry, for example one that a user emptied
        shutil.rmtree(final)
    os.replace(folder, final)
    # The folder is in place even if its parent can't be synced.
    with suppress(OSError):
        sync(final.parent)


def sync(path: Path) -> None:
    """Waits until a file or the entries of a folder are on disk; does nothing for a folder that can't be synced.

    CIFS, 9p, VirtualBox's shared folders and others refuse it for folders, although every file there is on disk.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def check_output_path(path: Path | None, what: str) -> None:
    """Refuses a path that can't be written, before any work is done for it.

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
        raise OutputError(f"can't write {what}: no folder {resolved.parent}", "create the folder first")
    if os.path.isdir(resolved):  # Path.is_dir raises on a name that is too long; writing reports that
        raise OutputError(f"can't write {what}: {path} is a folder", "give a file in it")


def is_output_stream(path: Path) -> bool:
    """Returns whether the path is a device, a pipe or an open stream of this program, which can't be replaced."""
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
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error


def _descriptor_of(path: Path) -> int | None:
    """Returns the 3 of `/dev/fd/3`. The descriptor itself is used: opening the path again would start at byte 0."""
    name = os.path.abspath(path)
    match = _DESCRIPTOR_PATH.fullmatch(name)
    return int(match[1]) if match else _STANDARD_STREAMS.get(name)
