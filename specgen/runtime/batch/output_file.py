"""Appends results to the output of a batch, whose lines say what a later run can skip."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from specgen.core.errors import OutputError, SettingsError
from specgen.storage.atomic_write import check_output_path, is_output_stream, replace_file

_START = b'{"id":'
"""What each line begins with."""


class OutputFile:
    """An output that is open for appending, and locked: a second run on it would answer everything twice.

    Each line is written at once. A kill can tear the last line; opening the file again removes it.

    Args:
        path: Created if it does not exist.
        retries_failed: Remove the lines of errors, so that their requests are answered again.

    Raises:
        OutputError: The file can't be opened or is in use.
        SettingsError: Its content is not the output of a batch.
    """

    def __init__(self, path: Path, *, retries_failed: bool = False) -> None:
        check_output_path(path, "the answers")
        if is_output_stream(path):
            raise SettingsError(
                f"invalid --output {str(path)!r}: not a file", "give a file, which a later run continues"
            )
        self._path = Path(os.path.realpath(path))
        self._descriptor = self._open()
        try:
            data = self._path.read_bytes()
            *lines, torn = data.split(b"\n")
            self.done: dict[str, bool] = {}
            """By id whether an answer is there; False for an error."""
            for number, line in enumerate(lines, 1):
                name, is_answer = _read_line(line, f"{path}, line {number}")
                self.done[name] = is_answer
            if not (torn.startswith(_START) or _START.startswith(torn)):
                raise _not_ours(f"the last line of {path}")
            if retries_failed and not all(self.done.values()):
                self._rewrite([line for line in lines if _read_line(line, "")[1]])
                self.done = {name: True for name, is_answer in self.done.items() if is_answer}
            elif torn:
                os.ftruncate(self._descriptor, len(data) - len(torn))
        except OSError as error:
            self.close()
            raise _unwritable(path, error) from error
        except BaseException:
            self.close()
            raise

    def append(self, line: str) -> None:
        """Writes one line.

        Raises:
            OutputError: The disk is full, or the file can't be written.
        """
        data = memoryview((line + "\n").encode())
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Closes the file and releases its lock. Can be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                hint = "wait until it ends, or give another -o"
                raise OutputError(f"another run is writing {self._path}", hint) from error
        return descriptor

    def _rewrite(self, lines: list[bytes]) -> None:
        """Replaces the file and opens, and locks, the new one."""
        replace_file(self._path, b"".join(line + b"\n" for line in lines), 0o666)
        self.close()
        self._descriptor = self._open()


def _read_line(line: bytes, place: str) -> tuple[str, bool]:
    """Returns the id of a line, and whether it is an answer; False for an error."""
    try:
        document = json.loads(line)
        name, _, error = document["custom_id"], document["response"], document["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise _not_ours(place)
    return name, error is None


def _not_ours(place: str) -> SettingsError:
    return SettingsError(f"{place} is not a line of a batch's output", "give another file with -o; this one is kept")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"can't write {path}: {error.strerror or error}")
