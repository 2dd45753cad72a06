"""Checks the header of a safetensors file against the file's size; reads no weights. Standard library only."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from specgen.core.errors import ModelFileError
from specgen.core.model_files import corrupt, describe_content, open_regular

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Args:
        dtype: The format's name of its type, `BF16`.
        begin: Where its values begin in the file.
        num_bytes: What they take.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int

    @property
    def num_values(self) -> int:
        """Returns the number of its values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What the header of a safetensors file says: the size of all values, and the tensors by name."""

    num_bytes: int
    tensors: dict[str, StoredTensor]

    @property
    def dtypes(self) -> Counter[str]:
        """Returns the number of values stored in each type."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.num_values
        return counts


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a file that was checked, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
    return tensors


def check_safetensors(path: Path) -> WeightFile:
    """Checks that the header matches the file (F16).

    Raises:
        ModelFileError: The file is empty, truncated, longer than its header says, or its header is invalid.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise corrupt(path, "empty" if size == 0 else f"truncated after {size} bytes")
        start = file.read(min(size, 64))
        what = describe_content(start)
        if what not in (None, "a safetensors file"):
            raise ModelFileError(f"{path} is not a safetensors file but {what}", "download the model again")
        file.seek(8)
        length = int.from_bytes(start[:8], "little")
        if length > size - 8:
            raise corrupt(path, f"its header claims {length} bytes, but only {size - 8} follow")
        if length > MAX_HEADER_BYTES:
            raise corrupt(path, f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
        header = file.read(length)
    try:
        return _check_header(path, json.loads(header), 8 + length, size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise corrupt(path, "its header is not a safetensors header") from error


def _check_header(path: Path, header: dict[str, dict[str, object]], start: int, size: int) -> WeightFile:
    """Returns what a header says; the values begin at `start` and end with the file."""
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (isinstance(dtype, str) and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
            raise TypeError(name)
        num_values = math.prod(shape)
        bits = _BITS.get(dtype)  # newer types are left to the library
        if bits is not None and num_values * bits != (offsets[1] - offsets[0]) * 8:
            raise corrupt(path, f"tensor {name!r} of type {dtype} and shape {shape} takes {offsets} bytes")
        tensors[name] = StoredTensor(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])
        spans.append((offsets[0], offsets[1]))
    position = 0
    for begin, end in sorted(spans):
        if begin != position or end < begin:
            raise corrupt(path, f"a gap or an overlap at byte {position} of its data")
        position = end
    if (missing := start + position - size) > 0:
        raise corrupt(path, f"truncated: {missing} bytes are missing")
    if missing < 0:
        raise corrupt(path, f"{-missing} extra bytes at its end")
    return WeightFile(position, tensors)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
