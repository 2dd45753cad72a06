"""Extracts the tokenizer, chat template and end ids of a GGUF file into a folder in the cache, once per file.

llama.cpp runs the file itself, but all text is encoded by transformers' tokenizers, whichever backend runs the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError
from specgen.core.model_files import read_json
from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.gguf.absent_ids import copy_metadata
from specgen.loading.gguf.metadata import GgufHeader
from specgen.storage.atomic_write import publish_folder
from specgen.storage.folders import cache_folder, check_space, disk_error, single_writer, staging
from specgen.text.tokenizer import checked_library_call, load_tokenizer

FORMAT = 3
"""Part of every key: increase it when entries of older versions must not be used any more."""

_DIGITS_ALONE = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "trillion"}
)
"""Pre-tokenizers of llama.cpp that split off each digit before GPT-2's rule; transformers 5.23 applies only GPT-2's."""

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
        ModelFileError: The file has no tokenizer, or one that transformers can't convert.
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
                tokenizer = read_tokenizer(path, header)
                split_digits(tokenizer, header)
                tokenizer.save_pretrained(folder)
                save_end_ids(folder, header)
                drop_added_tokens(folder, header.vocab_rows)
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


def read_tokenizer(path: Path, header: GgufHeader) -> Any:
    """Returns the tokenizer of a GGUF file, converted by transformers.

    Raises:
        ModelFileError: It can't be converted.
    """
    if header.absent_ids:
        with tempfile.TemporaryDirectory() as folder:
            copy_metadata(path, header, Path(folder) / path.name)
            return _convert_tokenizer(Path(folder) / path.name, path)
    return _convert_tokenizer(path.resolve(), path)


def _convert_tokenizer(source: Path, path: Path) -> Any:
    import transformers

    return checked_library_call(
        lambda: transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, trust_remote_code=False, local_files_only=True
        ),
        f"the tokenizer of {path} can't be converted",
    )


def split_digits(tokenizer: Any, header: GgufHeader) -> None:
    """Adds the file's rule for digits, which transformers ignores: `x  1` becomes `x`, two spaces and `1`."""
    if header.tokenizer_model != "gpt2" or header.tokenizer_pre not in _DIGITS_ALONE:
        return
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


def save_end_ids(folder: Path, header: GgufHeader) -> None:
    """Saves all end ids of the GGUF: chat models end a turn with tokens that transformers omits."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    known = config.get("eos_token_id")
    ids = [*(known if isinstance(known, list) else [] if known is None else [known]), *header.end_ids]
    if ids:
        config["eos_token_id"] = list(dict.fromkeys(ids))
        path.write_text(json.dumps(config, indent=2) + "\n")


def drop_added_tokens(folder: Path, rows: int | None) -> None:
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
