"""Reads the prompt from the argument, options, files and stdin; decodes strict UTF-8, and UTF-16 by its mark."""

from __future__ import annotations

import codecs
import contextlib
import os
import stat
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from specgen.core.errors import PromptError, SettingsError
from specgen.core.model_files import describe_content

MAX_PROMPT_BYTES = 16 * 1024 * 1024
"""More text than fits the window of any model. Limits an endless stdin."""
_STDIN = Path("-")


def read_prompt(
    argument: str | None,
    option: str | None,
    files: Sequence[Path],
    use_stdin: bool | None,
    *,
    is_chat: bool = True,
) -> str:
    """Joins the parts of the prompt with blank lines: files, then stdin, then the text of the command line.

    Args:
        argument: `PROMPT`; `-` means stdin, as in `--prompt` and `--file`.
        option: `--prompt`.
        files: `--file`.
        use_stdin: `--stdin` or `--no-stdin`; None reads stdin if it is a pipe, a file or a socket.
        is_chat: Strip line ends around files and piped text; a raw completion keeps every character.

    Raises:
        SettingsError: The prompt is given twice.
        PromptError: The prompt is missing, not UTF-8 or too long, or a file is unreadable.
    """
    if argument is not None and option is not None and "-" not in (argument, option):
        raise SettingsError("the prompt is given twice, as an argument and with --prompt", "give one of them")
    texts = [as_utf8(text, "the prompt") for text in (argument, option) if text is not None and text != "-"]
    parts = [read_text(path, "prompt file") for path in files if path != _STDIN]
    if "-" in (argument, option) or _STDIN in files or use_stdin or (use_stdin is None and _stdin_has_data()):
        parts.append(_read_stdin())
    # A raw completion may start from an empty text; the tokenizer decides whether the model can.
    may_be_empty = not is_chat and bool(parts or texts)
    if is_chat:
        parts = [part.strip("\r\n") for part in parts]
    prompt = "\n\n".join(filter(None, [*parts, *texts]))
    if not prompt and not may_be_empty:
        raise PromptError("there is no prompt", 'give one: specgen generate "Why is the sky blue?"')
    return prompt


def _stdin_has_data() -> bool:
    """Returns whether stdin is a pipe, a file or a socket. A terminal or /dev/null is read only on request."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_stdin() -> str:
    """Reads stdin to its end as UTF-8. Prints a notice to stderr if that takes longer than a second."""
    if sys.stdin is None:
        raise PromptError("can't read the prompt from stdin: stdin is closed")
    notice = threading.Timer(1.0, _print_waiting_notice)
    notice.daemon = True
    notice.start()
    try:
        return decode_text(read_capped(sys.stdin.buffer, "stdin"), "stdin")
    finally:
        notice.cancel()


def _print_waiting_notice() -> None:
    if sys.stderr is not None:  # print() would write to stdout if stderr is closed
        with contextlib.suppress(OSError, ValueError):
            print("reading the prompt from stdin (--no-stdin ignores it)...", file=sys.stderr, flush=True)


def read_text(path: Path, name: str, max_bytes: int = MAX_PROMPT_BYTES) -> str:
    """Returns the text of a file.

    Raises:
        PromptError: It can't be read, is too long, or is neither UTF-8 nor UTF-16 with its mark.
    """
    try:
        with path.open("rb") as file:
            return decode_text(read_capped(file, str(path), max_bytes), str(path))
    except OSError as error:
        raise PromptError(f"can't read the {name} {path}: {error.strerror or error}") from error


def read_capped(stream: BinaryIO, name: str, max_bytes: int = MAX_PROMPT_BYTES) -> bytes:
    """Reads a stream to its end.

    Raises:
        PromptError: The stream is longer than `max_bytes`.
    """
    chunks: list[bytes] = []
    num_bytes = 0
    while chunk := stream.read(1 << 16):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise PromptError(f"{name} is larger than {max_bytes >> 20} MiB", "give a shorter prompt")
        chunks.append(chunk)
    return b"".join(chunks)


def as_utf8(text: str, name: str) -> str:
    """Checks a text of the command line. Python passes bytes that are not UTF-8 on as lone surrogates.

    Raises:
        PromptError: The text has such bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return decode_text(os.fsencode(text), name)
    return text


def decode_text(data: bytes, name: str) -> str:
    """Decodes strict UTF-8, without an initial byte order mark; UTF-16, which PowerShell writes, if it has its mark.

    Raises:
        PromptError: The bytes are not UTF-8, and names the first invalid one; or they are UTF-16 without a mark.
    """
    encoding = _encoding(data)
    if encoding in ("utf-16-le", "utf-16-be"):
        # Half of its bytes are NUL, which is valid UTF-8 and would reach the model.
        raise PromptError(
            f"{name} is not UTF-8: it looks like UTF-16 without a byte order mark",
            f"convert it first: iconv -f {encoding.upper().replace('-', '', 1).replace('-', '')} -t UTF-8",
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise PromptError(f"{name} is damaged: its mark says {encoding.upper()}, but it isn't") from error
        if (what := describe_content(data[:64])) is not None:
            raise PromptError(f"{name} is {what}", "give a text file") from error
        raise PromptError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            # With LATIN1, bytes of other encodings become control characters silently.
            "convert it first from its encoding, as in: iconv -f WINDOWS-1252 -t UTF-8",
        ) from error


def _encoding(data: bytes) -> str:
    """Returns the encoding that the first bytes name, or that NUL in every second byte shows."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = data[:4096]
    for first_nul, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        nuls, others = start[first_nul::2], start[1 - first_nul :: 2]
        # Text in Latin script; three of four, because it may quote some other one.
        if len(nuls) >= 4 and len(data) % 2 == 0 and nuls.count(0) * 4 >= len(nuls) * 3 and 0 not in others:
            return encoding
    return "utf-8-sig"
