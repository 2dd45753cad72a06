"""Hides special tokens that a GGUF names but does not have: their id is -1, as a signed or unsigned 32-bit integer.

transformers indexes its list of tokens with such an id, and llama.cpp refuses the signed type. Both treat a file whose
key has another name as a file without the key. The other name has the same length, so that nothing else moves.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from specgen.loading.gguf.metadata import GgufHeader

NO_ID = 2**32 - 1
"""llama.cpp's LLAMA_TOKEN_NULL as it is in files."""
_NUM_TENSORS_AT = 8


def copy_metadata(path: Path, header: GgufHeader, target: Path) -> None:
    """Copies a GGUF without its tensors, and without the keys of absent ids."""
    with path.open("rb") as source:
        data = bytearray(source.read(header.metadata_end))
    struct.pack_into("<Q", data, _NUM_TENSORS_AT, 0)
    for absent in header.absent_ids:
        data[absent.key_end - 1 : absent.key_end] = b"-"
    target.write_bytes(data)


def copy_whole(path: Path, header: GgufHeader, target: Path) -> None:
    """Copies a GGUF without the keys of absent ids."""
    shutil.copyfile(path, target)
    with target.open("r+b") as file:
        for absent in header.absent_ids:
            file.seek(absent.key_end - 1)
            file.write(b"-")
