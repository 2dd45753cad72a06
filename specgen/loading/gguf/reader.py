"""Reads numbers and strings from a GGUF file, after checking that enough bytes remain; knows the sizes of its types."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

MAX_ENTRIES = 65_536
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 16 * 2**20
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of entries by their numbers in GGUF files; those of numbers as formats of `struct`."""
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Name, values and bytes per block, by the number in GGUF files. Source: ggml.h; a test compares the gguf package."""

_REPACKED = "use the Q4_0 file of the model: llama.cpp repacks it for the CPU while it loads"
_REPACKED_NL = "use the IQ4_NL file of the model: llama.cpp repacks it for the CPU while it loads"
_CONVERT = "convert the model again with llama.cpp"
REMOVED_TYPES = {
    4: ("Q4_2", _CONVERT),
    5: ("Q4_3", _CONVERT),
    31: ("Q4_0_4_4", _REPACKED),
    32: ("Q4_0_4_8", _REPACKED),
    33: ("Q4_0_8_8", _REPACKED),
    36: ("IQ4_NL_4_4", _REPACKED_NL),
    37: ("IQ4_NL_4_8", _REPACKED_NL),
    38: ("IQ4_NL_8_8", _REPACKED_NL),
}
"""Types that llama.cpp once had, and what to use instead. Source: the comments in ggml.h."""
MAX_FOREIGN_TYPE = 1000
"""Programs derived from llama.cpp number their own types from 97 to about 400; larger numbers are damage."""


class ForeignFileError(Exception):
    """The file is whole, but no GGUF that can be run; the message goes after its name.

    Args:
        hint: What to use instead.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


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
        self._check_rest(count)
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
        self._check_rest(count)
        self.position += count
        self.file.seek(self.position)

    def skip_strings(self, count: int, limit: int) -> None:
        """Skips strings of at most `limit` bytes. There may be 300,000: the methods for one take much longer."""
        read = self.file.read
        for _ in range(count):
            start = read(8)
            length = int.from_bytes(start, "little")
            if length > limit:
                raise InconsistentFileError(f"a string of {length} bytes; at most {limit} are allowed")
            if len(start) != 8 or len(read(length)) != length:
                raise InconsistentFileError(f"truncated in a list of {count} strings")
        self.position = self.file.tell()

    def _check_rest(self, count: int) -> None:
        if count > self.size - self.position:
            raise InconsistentFileError(
                f"truncated: {count} bytes expected at {self.position}, {self.size - self.position} left"
            )

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
