"""Reads numbers and strings from a file, after checking that enough bytes remain."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO


class InconsistentFileError(Exception):
    """The file is inconsistent; the message says how."""


class Bytes:
    """Reads a little-endian file from start to end.

    Raises:
        InconsistentFileError: From every method, if the file is too short.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        if count > self.size - self.position:
            raise InconsistentFileError(
                f"truncated: {count} bytes expected at {self.position}, {self.size - self.position} left"
            )
        data = self.file.read(count)
        if len(data) != count:
            raise InconsistentFileError("truncated while it was read")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Skips bytes."""
        if count <= 4096:  # a seek discards the read buffer, and a vocabulary has 150,000 short strings
            self.take(count)
            return
        if count > self.size - self.position:
            raise InconsistentFileError(
                f"truncated: {count} bytes expected at {self.position}, {self.size - self.position} left"
            )
        self.position += count
        self.file.seek(self.position)

    def unpack(self, layout: str) -> int | float:
        """Returns the next number; `layout` is a format of `struct`."""
        number: int | float = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return number

    def u32(self) -> int:
        """Returns the next unsigned 32-bit integer."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Returns the next unsigned 64-bit integer."""
        return int.from_bytes(self.take(8), "little")

    def length(self, limit: int) -> int:
        """Returns the length of a string, which must not exceed the limit."""
        length = self.u64()
        if length > limit:
            raise InconsistentFileError(f"a string of {length} bytes; at most {limit} are allowed")
        return length

    def string(self, limit: int) -> bytes:
        """Returns the next string, of at most `limit` bytes, as bytes."""
        return self.take(self.length(limit))
