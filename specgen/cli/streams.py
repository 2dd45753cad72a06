"""Writes to the standard streams: messages for people to stderr, documents and findings of a command to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from rich.text import Text

from specgen.cli.stdout import require_stdout
from specgen.core.errors import OutputError, SpecgenError
from specgen.core.events import Notice
from specgen.core.results import RunInfo, RunReport
from specgen.render.formatting import fit_block
from specgen.render.jsonl import Document, dumps, error_document
from specgen.render.messages import format_banner, format_error, format_notice
from specgen.render.summary import format_summary
from specgen.render.terminal import ColorLevel, ColorMode, decide_color, is_ascii_only, is_terminal, make_console
from specgen.render.views import ViewName
from specgen.render.writers import ByteWriter


class Messages:
    """Prints messages to stderr. A stderr that is closed or full does not affect the answer.

    Args:
        color: `--color`.
        quiet: Print errors and requested output only.
        environ: The environment.
    """

    def __init__(self, color: ColorMode, quiet: bool, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._color = color
        self.quiet = quiet
        # Python sets a closed stderr to None; the null device accepts everything.
        stream: IO[str] = sys.stderr if sys.stderr is not None else open(os.devnull, "w")  # noqa: SIM115
        self.stream = stream
        self.console = make_console(stream, color, self._environ)

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return is_terminal(self.stream)

    @property
    def ascii_only(self) -> bool:
        """Whether stderr can show ASCII characters only."""
        return is_ascii_only(self.console)

    def banner(self, info: RunInfo, view: ViewName) -> None:
        """Prints what runs and the legend of the view, if stderr is a terminal."""
        if not self.quiet and self.is_terminal:
            self._print(self._banner(info, view))

    def chat_banner(self, info: RunInfo, view: ViewName) -> None:
        """Prints what runs and how to get help, in at most five lines."""
        hint = Text("/help lists commands, Ctrl-C stops a reply, Ctrl-D leaves", style="muted")
        self.info(Text("\n").join([self._banner(info, view), hint]))

    def _banner(self, info: RunInfo, view: ViewName) -> Text:
        has_marks = decide_color(self._color, self.stream, self._environ).level is ColorLevel.MARKS
        return fit_block(format_banner(info, marks=has_marks, ascii_only=self.ascii_only, view=view), self.console)

    def summary(self, report: RunReport) -> None:
        """Prints the figures of a run, unless quiet."""
        if not self.quiet:
            width = self.console.width if self.is_terminal else 100
            self._print(format_summary(report, width, ascii_only=self.ascii_only))

    def warning(self, message: str) -> None:
        """Prints a notice, unless quiet."""
        self.info(format_notice(Notice("notice", message), ascii_only=self.ascii_only))

    def info(self, text: Text) -> None:
        """Prints a text, unless quiet."""
        if not self.quiet:
            self.print(text)

    def error(self, error: SpecgenError) -> None:
        """Prints the two lines of an error, quiet or not."""
        self.print(format_error(error, ascii_only=self.ascii_only))

    def print(self, text: Text) -> None:
        """Prints a text, quiet or not; wraps it at words on a terminal only."""
        self._print(text, wraps=self.is_terminal)

    def _print(self, text: object, *, wraps: bool = False) -> None:
        with suppress(OSError, ValueError):
            self.console.print(text, soft_wrap=not wraps)


def write_document(document: Document) -> None:
    """Writes one JSON document to stdout.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        OutputError: stdout is closed or accepts no more data.
    """
    _write_bytes((dumps(document) + "\n").encode())


def write_error_document(error: SpecgenError) -> None:
    """Writes the JSON document of an error to stdout, if that still works."""
    with suppress(BrokenPipeError, OutputError):
        write_document(error_document(error))


def print_text(text: Text, color: ColorMode) -> None:
    """Writes lines made by `labelled` to stdout; raises like `write_document`."""
    require_stdout("the answer")
    console = make_console(sys.stdout, color, os.environ)
    with console.capture() as captured:
        console.print(fit_block(text, console), soft_wrap=True)
    _write_bytes(captured.get().encode())


def _write_bytes(data: bytes) -> None:
    require_stdout("the answer")
    ByteWriter(sys.stdout.buffer).write(data)
