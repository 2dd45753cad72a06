"""Converts a GGUF file to a folder with safetensors in the cache, once per file: it takes 2 to 60 s.

The folder is published only when it is complete, and concurrent programs convert a file only once.
"""

from __future__ import annotations

from pathlib import Path

from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.config_check import has_weights
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.other_kinds import refuse_vocabulary
from specgen.loading.gguf.tokenizer import content_key
from specgen.storage.atomic_write import publish_folder
from specgen.storage.folders import (
    cache_folder,
    cache_root,
    check_space,
    disk_error,
    single_writer,
    staging,
)


def convert_gguf(path: Path, progress: ProgressListener = SILENT, *, sha256: str | None = None) -> Path:
    """Converts a GGUF file, or returns the folder of an earlier conversion.

    Args:
        sha256: The file's hash if known; otherwise its path, size and time identify its content.

    Raises:
        ModelFileError: The file is damaged, or its architecture can't be converted.
        LoadError: The disk is full.
        MemoryShortageError: There is too little memory to convert it.
    """
    models = cache_folder("models")
    key = content_key(path, sha256)
    final = models / key
    if has_weights(final):
        return final
    # It imports torch, which an earlier conversion does not need.
    from specgen.loading.gguf.model_folder import check_convertible, write_model_folder, written_type

    header = scan_gguf(path)
    check_convertible(header, path)
    refuse_vocabulary(header, path)
    with single_writer(models / f"{key}.lock", progress):
        if has_weights(final):  # another program has just converted it
            return final
        # Config and tokenizer take at most 35 MB.
        needed = header.num_parameters * written_type(header).itemsize + 35_000_000
        check_space(models, needed)
        with staging(models, key) as folder:
            try:
                write_model_folder(path, folder, header, progress)
                publish_folder(folder, final)
            except OSError as error:
                raise disk_error(error, models, needed) from error
    return final


def converted_folder(key: str) -> Path | None:
    """Returns the folder of an earlier conversion, or None."""
    folder = cache_root() / "models" / key
    return folder if has_weights(folder) else None
