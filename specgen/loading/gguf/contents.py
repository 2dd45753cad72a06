"""Reads entries and the table of tensors of a GGUF file that was checked: see `specgen.loading.gguf.header`.

`gguf.GGUFReader` makes several arrays for each token and merge, which takes 5 to 20 s.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.core.model_files import corrupt, open_regular
from specgen.loading.gguf.reader import (
    ARRAY,
    GGML_TYPES,
    MAX_ENTRIES,
    MAX_KEY_BYTES,
    MAX_STRING_BYTES,
    SCALARS,
    STRING,
    Bytes,
    InconsistentFileError,
)

_BOOLEAN = 7
_ALIGNMENT = "general.alignment"
_OF_THE_FILE = ("general.architecture", _ALIGNMENT)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a GGUF file.

    Args:
        kind: Number of its type.
        shape: Its sizes, as torch orders them.
        begin: Where its values begin in the file.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    begin: int

    @property
    def num_values(self) -> int:
        """Returns the number of its values."""
        return math.prod(self.shape)

    def bytes_of(self, num_values: int) -> int:
        """Returns the size of whole blocks of values in the file."""
        _, block, block_bytes = GGML_TYPES[self.kind]
        return num_values // block * block_bytes


@dataclass(frozen=True, slots=True)
class GgufContents:
    """What a GGUF file says of its model.

    Args:
        entries: All but those of the tokenizer and the file's description.
        tensors: By name.
    """

    path: Path
    entries: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_contents(path: Path) -> GgufContents:
    """Returns the entries and tensors of a file.

    Raises:
        ModelFileError: Strings are not UTF-8, or the file was replaced by another one.
    """
    with open_regular(path) as file:
        source = Bytes(file)
        try:
            source.skip(8)
            num_tensors, num_entries = source.u64(), source.u64()
            entries = read_entries(source, num_entries, _is_of_model)
            tensors = [_tensor(source) for _ in range(min(num_tensors, MAX_ENTRIES))]
        except (InconsistentFileError, UnicodeDecodeError) as error:
            raise corrupt(path, str(error)) from error
    alignment = entries.get(_ALIGNMENT, 32)
    start = -(-source.position // alignment) * alignment
    found = {name: GgufTensor(name, kind, shape, start + offset) for name, shape, kind, offset in tensors}
    return GgufContents(path, entries, found)


def _is_of_model(key: str) -> bool:
    return key in _OF_THE_FILE or not key.startswith(("general.", "tokenizer."))


def _tensor(source: Bytes) -> tuple[str, tuple[int, ...], int, int]:
    name = source.string(MAX_KEY_BYTES).decode()
    sizes = [source.u64() for _ in range(source.u32())]
    return name, tuple(reversed(sizes)), source.u32(), source.u64()


def read_entries(source: Bytes, count: int, is_kept: Callable[[str], bool]) -> dict[str, Any]:
    """Returns entries by key, where their number has been read.

    Args:
        is_kept: Whether the entry of a key is returned.

    Raises:
        InconsistentFileError: The file is not the one that was checked, or a string is not UTF-8.
    """
    entries: dict[str, Any] = {}
    for _ in range(min(count, MAX_ENTRIES)):
        key, kind = source.string(MAX_KEY_BYTES).decode(), source.u32()
        is_array = kind == ARRAY
        kind, length = (source.u32(), source.u64()) if is_array else (kind, 1)
        if kind == STRING and not is_kept(key):
            source.skip_strings(length, MAX_STRING_BYTES)
            continue
        try:
            values = _values(source, kind, length)
        except UnicodeDecodeError as error:
            raise InconsistentFileError(f"{key!r} is not UTF-8") from error
        if is_kept(key):
            entries[key] = values if is_array else values[0]
    return entries


def _values(source: Bytes, kind: int, count: int) -> list[Any]:
    if kind == STRING:
        return [source.string(MAX_STRING_BYTES).decode() for _ in range(count)]
    if kind not in SCALARS:
        raise InconsistentFileError(f"unknown type {kind}")
    layout = f"<{count}{SCALARS[kind][1]}"
    numbers = struct.unpack(layout, source.take(struct.calcsize(layout)))
    return [bool(number) for number in numbers] if kind == _BOOLEAN else list(numbers)
