"""Where a prompt comes from: argument, option, files and stdin in, one text out. Bytes are decoded here, strictly."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from specgen.core.errors import PromptError, SettingsError

MAX_PROMPT_BYTES = 16 * 1024 * 1024
"""More text than any model's window; an endless stdin ends here."""


def read_prompt(
    argument: str | None,
    option: str | None,
    files: Sequence[Path],
    use_stdin: bool | None,
    *,
    is_chat: bool = True,
) -> str:
    """Put the prompt together: files, then stdin, then the words of the command line, a blank line between them.

    Args:
        argument: `PROMPT`; `-` stands for stdin.
        option: `--prompt`.
        files: `--file`; `-` stands for stdin.
        use_stdin: `--stdin` or `--no-stdin`; None reads it if it is a pipe, file or socket.
        is_chat: Drop line ends at the ends of piped text; a raw completion keeps every character.

    Raises:
        SettingsError: Two prompts.
        PromptError: No prompt, not UTF-8, too long, or an unreadable file.
    """
    if argument is not None and option is not None and "-" not in (argument, option):
        raise SettingsError("the prompt is given twice, as an argument and with --prompt", "give one of them")
    words = [as_utf8(text, "the prompt") for text in (argument, option) if text is not None and text != "-"]
    names_stdin = "-" in (argument, option) or Path("-") in files
    wants_stdin = names_stdin or use_stdin or (use_stdin is None and stdin_has_data())
    parts = [_read_file(path) for path in files if path != Path("-")]
    if wants_stdin:
        parts.append(read_stdin())
    if is_chat:
        parts = [part.strip("\r\n") for part in parts]
    # A raw completion may start from nothing: whether the model can is for its tokenizer to say.
    starts_empty = not is_chat and (words or wants_stdin or files)
    parts = [part for part in [*parts, *words] if part]
    if not parts and not starts_empty:
        raise PromptError("there is no prompt", 'give one: specgen generate "Why is the sky blue?"')
    return "\n\n".join(parts)


def stdin_has_data() -> bool:
    """Whether stdin is a pipe, a file or a socket. A terminal or /dev/null is not read unasked."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_stdin() -> str:
    """Read stdin to its end as UTF-8; says so on stderr if nothing came for a second."""
    if sys.stdin is None:
        raise PromptError("stdin is closed, so no prompt can be read from it")
    notice = threading.Timer(1.0, _say_waiting)
    notice.daemon = True
    notice.start()
    try:
        data = read_capped(sys.stdin.buffer, "stdin")
    finally:
        notice.cancel()
    return decode(data, "stdin")


def _say_waiting() -> None:
    if sys.stderr is not None:  # print() would take a closed stderr for stdout
        with contextlib.suppress(OSError, ValueError):
            print("reading the prompt from stdin (--no-stdin ignores it)...", file=sys.stderr, flush=True)


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = read_capped(file, str(path))
    except OSError as error:
        raise PromptError(f"can't read the prompt file {path}: {error.strerror or error}") from error
    return decode(data, str(path))


def read_capped(stream: BinaryIO, name: str) -> bytes:
    """All bytes of a stream, refusing more than a prompt can have.

    Raises:
        PromptError: There are more.
    """
    chunks: list[bytes] = []
    size = 0
    while chunk := stream.read(1 << 16):
        size += len(chunk)
        if size > MAX_PROMPT_BYTES:
            raise PromptError(f"{name} holds more than {MAX_PROMPT_BYTES >> 20} MiB", "give a shorter prompt")
        chunks.append(chunk)
    return b"".join(chunks)


def as_utf8(text: str, name: str) -> str:
    """A word of the command line; Python hides bytes in it that are no text as lone surrogates.

    Raises:
        PromptError: There are some.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return decode(os.fsencode(text), name)
    return text


def decode(data: bytes, name: str) -> str:
    """UTF-8, strictly, an initial byte order mark dropped.

    Raises:
        PromptError: The bytes are not UTF-8; names the first wrong one.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            "convert it first: iconv -f LATIN1 -t UTF-8",
        ) from error
