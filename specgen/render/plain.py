"""Writes exactly the bytes of the answer, for pipes and files."""

from __future__ import annotations

from typing import BinaryIO

from specgen.core.events import FinalText, RoundText, TextEvent
from specgen.render.styled_writer import output_error
from specgen.render.view import Sanitizer, unchanged


class ByteSink:
    """Writes all bytes and flushes; after a failure it writes nothing more."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._failed = False

    def write(self, data: bytes) -> None:
        """Writes and flushes.

        Raises:
            BrokenPipeError: The reader closed the pipe.
            OutputError: Any other failure.
        """
        if self._failed or not data:
            return
        rest = memoryview(data)
        try:
            # Under `python -u` stdout is a raw file, which may write only some of the bytes.
            while rest:
                rest = rest[self._stream.write(rest) or 0 :]
            self._stream.flush()
        except BrokenPipeError:
            self._failed = True
            raise
        except OSError as error:
            self._failed = True
            raise output_error(error) from error


class PlainView:
    """Writes the answer as UTF-8, flushed once per round. Adds a final newline to an answer without one.

    Args:
        stream: A binary stream; a text stream may have another encoding, or translate newlines.
        sanitizer: `unchanged` for the exact bytes.
    """

    def __init__(self, stream: BinaryIO, sanitizer: Sanitizer = unchanged) -> None:
        self._sink = ByteSink(stream)
        self._sanitizer = sanitizer
        self._at_line_start = True

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._write(self._sanitizer(event.kept))
        elif isinstance(event, FinalText):
            self._write(self._sanitizer(event.text))

    def close(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._sink.write(text.encode("utf-8", "replace"))
