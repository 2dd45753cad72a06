"""Replaces files and publishes folders atomically: a reader, or a crash at any point, sees the old content or the new.

New content is written under a hidden temporary name in the same folder, synced to disk, and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specgen.core.errors import OutputError

PRIVATE = 0o600
"""Mode of files that only their owner may read."""
USER_FILE = 0o666
"""Mode of files that a user requested; the umask applies."""


def replace_file(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replaces a file. A symbolic link at `path` is replaced, not followed.

    Raises:
        OutputError: Any step failed. The old file is unchanged and the temporary file is removed.
    """
    try:
        with replacement(path) as temporary:
            _write_new(temporary, data, mode)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


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
    # The new file is in place even if the folder cannot be synced, as on some network disks.
    with suppress(OSError):
        sync(path.parent)


def publish_folder(folder: Path, final: Path) -> None:
    """Syncs a finished folder with its files, then renames it to its final name on the same disk."""
    for path in [*folder.iterdir(), folder]:
        sync(path)
    if final.exists():  # an incomplete entry, for example one that a user emptied
        shutil.rmtree(final)
    os.replace(folder, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Waits until a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
