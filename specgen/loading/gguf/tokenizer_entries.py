"""Reads what a GGUF header says of its tokenizer. The header was checked: see `specgen.loading.gguf.header`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from specgen.core.model_files import corrupt, open_regular
from specgen.loading.gguf.header import ARRAY, MAX_ENTRIES, MAX_KEY_BYTES, MAX_STRING_BYTES, SCALARS, STRING
from specgen.loading.gguf.reader import Bytes, InconsistentFileError

_BOOLEAN = 7


def read_tokenizer_entries(path: Path) -> dict[str, Any]:
    """Returns the architecture and all entries that begin with `tokenizer.`.

    Raises:
        ModelFileError: Strings are not UTF-8, or the file was replaced by another one.
    """
    with open_regular(path) as file:
        source = Bytes(file)
        try:
            source.skip(16)
            pairs = (_pair(source) for _ in range(min(source.u64(), MAX_ENTRIES)))
            return {key: value for key, value in pairs if _is_kept(key)}
        except (InconsistentFileError, UnicodeDecodeError) as error:
            raise corrupt(path, str(error)) from error


def _is_kept(key: str) -> bool:
    return key.startswith("tokenizer.") or key == "general.architecture"


def _pair(source: Bytes) -> tuple[str, Any]:
    key, kind = source.string(MAX_KEY_BYTES).decode(), source.u32()
    try:
        if kind != ARRAY:
            return key, _values(source, kind, 1, _is_kept(key))[0]
        return key, _values(source, source.u32(), source.u64(), _is_kept(key))
    except UnicodeDecodeError as error:
        raise InconsistentFileError(f"{key!r} is not UTF-8") from error


def _values(source: Bytes, kind: int, count: int, is_text: bool) -> list[Any]:
    if kind == STRING:
        strings = [source.string(MAX_STRING_BYTES) for _ in range(count)]
        return [string.decode() for string in strings] if is_text else strings
    if kind not in SCALARS:
        raise InconsistentFileError(f"unknown type {kind}")
    layout = f"<{count}{SCALARS[kind][1]}"
    numbers = struct.unpack(layout, source.take(struct.calcsize(layout)))
    return [bool(number) for number in numbers] if kind == _BOOLEAN else list(numbers)
