"""A GGUF file in, a small folder with its tokenizer, chat template and end ids out; its weights stay where they are.

llama.cpp runs the file itself, but text is made into ids in one place of the program, whatever runs the model: so the
tokenizer is unpacked by transformers, once for each file.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError
from specgen.core.model_files import read_json
from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.gguf.header import GgufHeader
from specgen.storage.atomic_write import publish_folder
from specgen.storage.cache import check_space, disk_error, single_writer, staging
from specgen.storage.paths import cache_folder
from specgen.text.tokenizer import checked_library_call, load_tokenizer

FORMAT = 1
"""Part of every key: raise it when an entry made by an older specgen must not be used any more."""

_DIGITS_ALONE = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "trillion"}
)
"""Rules of llama.cpp that split every digit off before GPT-2's rule; transformers 5.23 knows GPT-2's alone."""

_FOLDER_BYTES = 40_000_000
"""Room for a tokenizer: the largest tokenizer.json seen has 34 MB."""


def tokenizer_folder(
    path: Path, header: GgufHeader, progress: ProgressListener = SILENT, *, sha256: str | None = None
) -> Path:
    """Unpack the tokenizer of a GGUF, or find the folder an earlier run made of it.

    Args:
        path: The file.
        header: Its header, already checked.
        progress: Receives the progress of loading.
        sha256: The file's hash where it is known.

    Raises:
        ModelFileError: The file holds no tokenizer, or none that transformers can unpack.
        LoadError: The disk is full.
    """
    check_whole(header, path)
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
                tokenizer = read_tokenizer(path)
                _split_digits(tokenizer, header)
                tokenizer.save_pretrained(folder)
                keep_end_ids(folder, header)
                drop_added_tokens(folder, header.vocab_rows)
                load_tokenizer(folder)
                publish_folder(folder, final)
            except ModelFileError as error:
                # It names the staging folder, which is gone by now.
                raise ModelFileError(error.message.replace(str(folder), str(path)), error.hint) from error
            except OSError as error:
                raise disk_error(error, parent, _FOLDER_BYTES) from error
    return final


def _is_complete(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def content_key(path: Path, sha256: str | None) -> str:
    """The name of the cache entry of a file: readable in front, and different for different content."""
    if sha256 is None:
        # The hash of a 9 GB file takes half a minute; a changed file has another time or size.
        real = path.resolve()
        status = real.stat()
        identity = f"{real}\0{status.st_size}\0{status.st_mtime_ns}"
    else:
        identity = sha256
    digest = hashlib.sha256(f"{FORMAT}\0{identity}".encode(errors="surrogateescape")).hexdigest()
    return f"{re.sub(r'[^a-z0-9.-]+', '-', path.stem.lower())[:60].strip('.-') or 'model'}-{digest[:16]}"


def check_whole(header: GgufHeader, path: Path) -> None:
    """Refuse a part of a model, and a file that holds no language model.

    Raises:
        ModelFileError: It is one of them.
    """
    if header.num_parts > 1:
        raise ModelFileError(
            f"{path} is one of {header.num_parts} parts of a model", "join them first with: llama-gguf-split --merge"
        )
    if header.tokenizer_model is None:
        raise ModelFileError(f"{path} holds no tokenizer", "choose a GGUF of a language model, with its tokenizer")


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF as transformers unpacks it.

    Raises:
        ModelFileError: It can't be unpacked.
    """
    import transformers

    source = path.resolve()
    return checked_library_call(
        lambda: transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, trust_remote_code=False, local_files_only=True
        ),
        f"the tokenizer of {path} can't be unpacked",
    )


def _split_digits(tokenizer: Any, header: GgufHeader) -> None:
    """Split text as the file says, where transformers does not: `x  1` is then `x`, two spaces and `1`."""
    if header.tokenizer_model != "gpt2" or header.tokenizer_pre not in _DIGITS_ALONE:
        return
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


def keep_end_ids(folder: Path, header: GgufHeader) -> None:
    """Write every end id of the GGUF down: chat models end a turn with eot, which transformers leaves out."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    known = config.get("eos_token_id")
    ids = [*(known if isinstance(known, list) else [] if known is None else [known]), *header.end_ids]
    if ids:
        config["eos_token_id"] = list(dict.fromkeys(ids))
        path.write_text(json.dumps(config, indent=2) + "\n")


def drop_added_tokens(folder: Path, rows: int | None) -> None:
    """Take out tokens the model has no row for: transformers adds GPT-2's `<|endoftext|>` where a GGUF has none.

    A user who types that string would otherwise send an id the model can't look up.
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
