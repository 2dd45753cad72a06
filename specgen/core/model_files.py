"""Opens model files without trusting them: regular files only, JSON under a size cap. Standard library only."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from specgen.core.errors import ModelFileError

MAX_JSON_BYTES = 64 * 2**20
"""The largest tokenizer.json seen is 34 MB (Gemma 3); a config is a few kB."""

GGUF_MAGIC = b"GGUF"
_CONTENTS = {
    GGUF_MAGIC: "a GGUF file",
    b"FUGG": "a GGUF file of a big-endian machine",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"lmgg": "a GGML file, which llama.cpp read before GGUF: convert it again from the original model",
    b"fmgg": "a GGML file, which llama.cpp read before GGUF: convert it again from the original model",
    b"tjgg": "a GGML file, which llama.cpp read before GGUF: convert it again from the original model",
    b"algg": "a GGML adapter (LoRA)",
    b"PK\x03\x04": "a zip archive, as PyTorch's pickles are",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"(\xb5/\xfd": "a zstd archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "a database (SQLite)",
    b"%PDF-": "a PDF document: save its text",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"RIFF": "an image, a sound or a film",
    b"\x7fELF": "a program",
    b"MZqFpD": "a llamafile, which is a program with a model in it: unzip the GGUF",
    b"jartsr": "a llamafile, which is a program with a model in it: unzip the GGUF",
    b"MZ": "a program",
}
"""Kinds of files by their first bytes."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; a FIFO, socket or device could block or never end.

    Raises:
        ModelFileError: It is missing, unreadable or not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO without a writer never returns.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelFileError(f"{path} is not a regular file", "give a .gguf file or a folder with safetensors")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelFileError: It is missing, larger than `MAX_JSON_BYTES`, truncated, or not an object.
    """
    data = _read(path, "JSON")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON and bad UTF-8 alike
        what = describe_content(data[:64])
        raise corrupt(path, f"not JSON but {what}" if what else f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise corrupt(path, "not a JSON object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns an empty one if the file does not exist. See `read_json` for the errors."""
    return read_json(path) if path.exists() else {}


def read_text(path: Path) -> str:
    """Reads a text file of a model.

    Raises:
        ModelFileError: It is missing, larger than `MAX_JSON_BYTES`, or not UTF-8 text.
    """
    data = _read(path, "text")
    if what := describe_content(data[:64]):
        raise corrupt(path, f"not text but {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise corrupt(path, "not valid UTF-8") from error


def _read(path: Path, kind: str) -> bytes:
    with open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        limit = MAX_JSON_BYTES >> 20
        raise ModelFileError(f"{path} is larger than {limit} MiB, too large for a {kind} file of a model")
    return data


def describe_content(start: bytes) -> str | None:
    """Returns the format of a file by its first bytes, not by its name; None if the format is unknown.

    Args:
        start: At least 64 bytes, or the whole file.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    # A header of 640 bytes begins as a pickle does.
    return _safetensors(start) or next((what for magic, what in _CONTENTS.items() if start.startswith(magic)), None)


def _safetensors(start: bytes) -> str | None:
    length = int.from_bytes(start[:8], "little")
    return "a safetensors file" if start[8:10] == b'{"' and 2 <= length < 2**30 else None


def is_gguf(path: Path) -> bool:
    """Returns whether a file begins as a GGUF. A store may name it otherwise, as Ollama's does: `sha256-...`."""
    with open_regular(path) as file:
        return file.read(4) == GGUF_MAGIC


def corrupt(path: Path, why: str) -> ModelFileError:
    """Returns the error for a damaged file."""
    return ModelFileError(f"corrupt: {path} ({why})", "delete it and download again")


def reason(error: OSError) -> str:
    """Returns the operating system's reason, without the path."""
    return (error.strerror or type(error).__name__).lower()


def listed(names: list[str]) -> str:
    """Returns the first three names and the number of the others: `a, b, c and 4 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
