"""Reads what a GGUF header says of its tokenizer. The header was checked: see `specgen.loading.gguf.header`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.model_files import corrupt, open_regular
from specgen.loading.gguf.contents import read_entries
from specgen.loading.gguf.reader import Bytes, InconsistentFileError


def read_tokenizer_entries(path: Path) -> dict[str, Any]:
    """Returns the architecture and all entries that begin with `tokenizer.`.

    Raises:
        ModelFileError: Strings are not UTF-8, or the file was replaced by another one.
    """
    with open_regular(path) as file:
        source = Bytes(file)
        try:
            source.skip(16)
            return read_entries(source, source.u64(), _is_kept)
        except (InconsistentFileError, UnicodeDecodeError) as error:
            raise corrupt(path, str(error)) from error


def _is_kept(key: str) -> bool:
    return key.startswith("tokenizer.") or key == "general.architecture"
