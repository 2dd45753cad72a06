"""A file in, its numbers and strings out, each read only after the bytes for it are known to be there."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO


class Contradiction(Exception):
    """The file contradicts itself; the text says how."""


class Bytes:
    """Reads a file from its beginning to its end, little-endian.

    Raises:
        Contradiction: From every method, where the file ends before what it announced.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            Contradiction: There are fewer.
        """
        if count > self.size - self.position:
            raise Contradiction(f"cut off: {count} bytes wanted at {self.position}, {self.size - self.position} left")
        data = self.file.read(count)
        if len(data) != count:
            raise Contradiction("became shorter while it was read")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Leave bytes out.

        Raises:
            Contradiction: There are fewer.
        """
        if count <= 4096:  # a seek throws the read buffer away; a vocabulary is 150,000 short strings
            self.take(count)
            return
        if count > self.size - self.position:
            raise Contradiction(f"cut off: {count} bytes wanted at {self.position}, {self.size - self.position} left")
        self.position += count
        self.file.seek(self.position)

    def unpack(self, layout: str) -> int | float:
        """One number of a layout of `struct`, without its own length."""
        number: int | float = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return number

    def u32(self) -> int:
        """The next four bytes, unsigned."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """The next eight bytes, unsigned."""
        return int.from_bytes(self.take(8), "little")

    def length(self, limit: int) -> int:
        """The length of a string.

        Raises:
            Contradiction: It is above the limit.
        """
        length = self.u64()
        if length > limit:
            raise Contradiction(f"a string of {length} bytes; at most {limit} are read")
        return length

    def string(self, limit: int) -> bytes:
        """A string of at most `limit` bytes, as bytes."""
        return self.take(self.length(limit))
