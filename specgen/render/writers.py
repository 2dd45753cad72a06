"""Writes the answer to a stream: exact bytes, or styled text. Each call takes one write and one flush.

Rich's own printing is not used: it expands tabs by chunk instead of row, prints nothing when COLUMNS is 0, and ends
the program when a pipe breaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from specgen.core.errors import OutputError
from specgen.render.terminal import is_ascii_only
from specgen.render.theme import PLAIN, ROLES, Glyphs, glyphs

StyledText = tuple[str, str]
"""A role of the theme (or `PLAIN`) and safe text."""

_RESET = "\x1b[0m\x1b[?25h"


class _Writer:
    """Remembers a failed write: nothing is written after it, so closing a view on a broken pipe is silent."""

    def __init__(self) -> None:
        self._failed = False

    @contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._failed = True
            raise
        except OSError as error:
            self._failed = True
            raise OutputError(f"can't write the answer: {error.strerror or error}") from error


class ByteWriter(_Writer):
    """Writes bytes to a binary stream."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Writes all bytes and flushes.

        Raises:
            BrokenPipeError: The reader closed the pipe.
            OutputError: Any other failure.
        """
        if self._failed or not data:
            return
        rest = memoryview(data)
        with self._failing_once():
            # Under `python -u` stdout is a raw file, which may write only some of the bytes.
            while rest:
                rest = rest[self._stream.write(rest) or 0 :]
            self._stream.flush()


class StyledWriter(_Writer):
    """Writes styled text to the stream of a console from `make_console`, which defines what the stream can show."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._at_line_start = True
        self._styles: dict[str, Style] = {}
        if self.has_styles:
            for role in ROLES:
                style = console.get_style(role)
                self._styles[role] = style.without_color if console.no_color else style

    @property
    def has_styles(self) -> bool:
        """Whether the stream shows styles; if not, marks show the states."""
        return self._console.color_system is not None

    @property
    def glyphs(self) -> Glyphs:
        """The symbols that the stream can show."""
        return glyphs(ascii_only=is_ascii_only(self._console))

    def can_move_cursor(self) -> bool:
        """Returns whether text on the screen may be rewritten."""
        return self.has_styles and self._console.is_interactive

    def size(self) -> tuple[int, int]:
        """Returns the present columns and rows of the terminal.

        The terminal takes precedence over COLUMNS: erasing needs its real width.
        """
        try:
            columns, rows = os.get_terminal_size(self._console.file.fileno())
        except (AttributeError, OSError, ValueError):
            columns, rows = 0, 0
        if columns > 0 and rows > 0:
            return columns, rows
        return self._console.size.width, self._console.size.height

    def paint(self, role: str, text: str) -> str:
        """Returns the text in the style of its role, followed by the end of the style."""
        style = self._styles.get(role)
        return style.render(text, color_system=ColorSystem.STANDARD) if style and text else text

    def write(self, parts: Iterable[StyledText], *, before: str = "", after: str = "") -> None:
        """Writes all parts at once, between terminal controls, and flushes.

        Raises:
            BrokenPipeError: The reader closed the pipe.
            OutputError: Any other failure.
        """
        texts = [(role, text) for role, text in parts if text]
        if texts:
            self._at_line_start = texts[-1][1].endswith("\n")
        data = before + "".join(self.paint(role, text) for role, text in texts) + after
        if self._failed or not data:
            return
        stream = self._console.file
        with self._failing_once():
            try:
                stream.write(data)
            except UnicodeEncodeError as error:
                stream.write(data.encode(error.encoding, "backslashreplace").decode(error.encoding))
            stream.flush()

    def finish(self, *, before: str = "") -> None:
        """Resets the terminal: no style, a visible cursor, the next output on a new line."""
        reset = _RESET if self.can_move_cursor() else ""
        newline = [] if self._at_line_start else [(PLAIN, "\n")]
        self.write(newline, before=before + reset)
