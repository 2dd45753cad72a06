"""Extracts the tokenizer, chat template and end ids of a GGUF file into a folder in the cache, once per file.

llama.cpp runs the file itself, but all text is encoded by the same tokenizer, whichever backend runs the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path

from specgen.core.errors import ModelFileError
from specgen.core.model_files import read_json
from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.gguf.absent_ids import copy_metadata
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.tokenizer_entries import read_tokenizer_entries
from specgen.loading.gguf.tokenizer_model import UnsupportedTokenizer, build_tokenizer, save_tokenizer
from specgen.storage.atomic_write import publish_folder
from specgen.storage.folders import cache_folder, check_space, disk_error, single_writer, staging
from specgen.text.tokenizer import checked_library_call, load_tokenizer

FORMAT = 7
"""Part of every key: increase it when entries of older versions must not be used any more."""

_FAILED = "the tokenizer of {} can't be converted"
_FOLDER_BYTES = 40_000_000
"""Disk space for a tokenizer: the largest tokenizer.json seen has 34 MB."""


def tokenizer_folder(
    path: Path, header: GgufHeader, progress: ProgressListener = SILENT, *, sha256: str | None = None
) -> Path:
    """Extracts the tokenizer of a GGUF file, or returns the folder of an earlier run.

    Args:
        path: The file.
        header: Its header, already checked.
        progress: Receives the progress of loading.
        sha256: The file's hash if known.

    Raises:
        ModelFileError: The file has no tokenizer, or one that can't be converted.
        LoadError: The disk is full.
    """
    check_tokenizer(header, path)
    parent = cache_folder("tokenizers")
    key = content_key(path, sha256)
    final = parent / key
    if _is_complete(final):
        return final
    with single_writer(parent / f"{key}.lock", progress):
        if _is_complete(final):
            return final
        check_space(parent, _FOLDER_BYTES)
        with staging(parent, key) as folder:
            progress.stage(f"reading the tokenizer of {path.name}, once for this file")
            try:
                write_tokenizer(path, header, folder, header.vocab_rows, progress)
                save_end_ids(folder, header)
                load_tokenizer(folder)
                publish_folder(folder, final)
            except ModelFileError as error:
                # The message names the staging folder, which is deleted.
                raise ModelFileError(error.message.replace(str(folder), str(path)), error.hint) from error
            except OSError as error:
                raise disk_error(error, parent, _FOLDER_BYTES) from error
    return final


def _is_complete(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def content_key(path: Path, sha256: str | None) -> str:
    """Returns the name of a file's cache entry: a readable prefix and a digest of its content."""
    if sha256 is None:
        # Hashing a 9 GB file takes half a minute; a changed file has another time or size.
        real = path.resolve()
        status = real.stat()
        identity = f"{real}\0{status.st_size}\0{status.st_mtime_ns}"
    else:
        identity = sha256
    digest = hashlib.sha256(f"{FORMAT}\0{identity}".encode(errors="surrogateescape")).hexdigest()
    return f"{re.sub(r'[^a-z0-9.-]+', '-', path.stem.lower())[:60].strip('.-') or 'model'}-{digest[:16]}"


def check_tokenizer(header: GgufHeader, path: Path) -> None:
    """Refuses a file without a tokenizer.

    Raises:
        ModelFileError: It has none.
    """
    if header.tokenizer_model is None:
        raise ModelFileError(f"{path} has no tokenizer", "use a GGUF file of a language model with its tokenizer")


def write_tokenizer(
    path: Path, header: GgufHeader, folder: Path, rows: int | None, progress: ProgressListener = SILENT
) -> None:
    """Writes the tokenizer of a GGUF file to a folder: built here, or converted by transformers.

    Args:
        path: The file.
        header: Its header.
        folder: Where it goes.
        rows: Embeddings of the model; None if unknown.
        progress: Receives why transformers converts it.

    Raises:
        ModelFileError: It can't be converted.
    """
    entries = read_tokenizer_entries(path)
    try:
        backend = checked_library_call(lambda: build_tokenizer(entries), _FAILED.format(path))
    except UnsupportedTokenizer as reason:
        progress.stage(f"transformers converts the tokenizer of {path.name}: {reason}")
    else:
        save_tokenizer(backend, entries, folder)
        return
    if header.absent_ids:
        with tempfile.TemporaryDirectory() as copies:
            copy_metadata(path, header, Path(copies) / path.name)
            _convert_with_transformers(Path(copies) / path.name, path, folder)
    else:
        _convert_with_transformers(path.resolve(), path, folder)
    _drop_added_tokens(folder, rows)


def _convert_with_transformers(source: Path, path: Path, folder: Path) -> None:
    import transformers

    checked_library_call(
        lambda: transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, trust_remote_code=False, local_files_only=True
        ),
        _FAILED.format(path),
    ).save_pretrained(folder)


def save_end_ids(folder: Path, header: GgufHeader) -> None:
    """Saves all end ids of the GGUF: chat models end a turn with tokens that transformers omits."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    known = config.get("eos_token_id")
    ids = [*(known if isinstance(known, list) else [] if known is None else [known]), *header.end_ids]
    if ids:
        config["eos_token_id"] = list(dict.fromkeys(ids))
        path.write_text(json.dumps(config, indent=2) + "\n")


def _drop_added_tokens(folder: Path, rows: int | None) -> None:
    """Removes tokens without an embedding: transformers adds GPT-2's `<|endoftext|>` if a GGUF has none.

    Otherwise a prompt with that string would contain an id that the model can't look up.
    """
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.exists() or rows is None:
        return
    tokenizer, config = read_json(path), read_json(config_path)
    added = tokenizer.get("added_tokens") or []
    dropped = {token["content"] for token in added if token["id"] >= rows}
    if not dropped:
        return
    tokenizer["added_tokens"] = [token for token in added if token["id"] < rows]
    config = {key: value for key, value in config.items() if not (isinstance(value, str) and value in dropped)}
    config.pop("added_tokens_decoder", None)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
