"""Prepares and writes the standard streams: answers and documents on stdout, messages and progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from rich.text import Text

from specgen.cli.options.groups import VerbosityOptions
from specgen.core.errors import OutputError, SpecgenError
from specgen.core.events import Notice
from specgen.core.results import RunInfo, RunReport
from specgen.loading.libraries import prepare_libraries
from specgen.render.formatting import fit_block
from specgen.render.jsonl import Document, dumps, error_document
from specgen.render.messages import format_banner, format_error, format_notice
from specgen.render.progress import LoadProgress
from specgen.render.summary import format_summary
from specgen.render.terminal import ColorLevel, ColorMode, decide_color, is_ascii_only, is_terminal, make_console
from specgen.render.view import View
from specgen.render.views import SanitizeMode, ViewName, make_view, resolve_view
from specgen.render.writers import ByteWriter

# stdout


def require_stdout(what: str) -> None:
    """Checks that stdout is open, before any work is done for what would be written, such as `the answer`.

    Raises:
        OutputError: stdout is closed.
    """
    if sys.stdout is None:
        raise OutputError(f"can't write {what}: stdout is closed", "leave stdout open, or redirect it to a file")


def use_utf8_stdout() -> None:
    """Makes stdout's text UTF-8: a name outside the environment's encoding must not raise an exception."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


def discard_stdout() -> None:
    """Points stdout at the null device, because the interpreter flushes it once more when it exits."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


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
    """Writes lines made by `labelled` to stdout; raises like `write_document`. stdout must be open."""
    console = make_console(sys.stdout, color, os.environ)
    with console.capture() as captured:
        console.print(fit_block(text, console), soft_wrap=True)
    _write_bytes(captured.get().encode())


def _write_bytes(data: bytes) -> None:
    require_stdout("the answer")
    ByteWriter(sys.stdout.buffer).write(data)


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """How an answer is shown on stdout: the values of `--view`, `--color` and `--sanitize`.

    Args:
        default: The view that `auto` means on a terminal.
    """

    view: ViewName = "auto"
    color: ColorMode = "auto"
    sanitize: SanitizeMode = "auto"
    default: ViewName = "inline"

    @property
    def resolved_view(self) -> ViewName:
        """The view that `auto` means for the current stdout."""
        return resolve_view(self.view, is_terminal=is_terminal(sys.stdout), color=self.color, default=self.default)

    def new_view(self) -> View:
        """Returns a view for one answer."""
        return make_view(
            self.resolved_view,
            console=make_console(sys.stdout, self.color, os.environ),
            binary=sys.stdout.buffer,
            is_terminal=is_terminal(sys.stdout),
            sanitize_mode=self.sanitize,
        )


# stderr


class Messages:
    """Prints messages to stderr. A stderr that is closed or full does not affect the answer.

    Args:
        color: `--color`.
        quiet: Print errors and requested output only.
    """

    def __init__(self, color: ColorMode, quiet: bool) -> None:
        self._color = color
        self.quiet = quiet
        # Python sets a closed stderr to None; the null device accepts everything.
        self._stream: IO[str] = sys.stderr if sys.stderr is not None else open(os.devnull, "w")  # noqa: SIM115
        self.console = make_console(self._stream, color, os.environ)

    @property
    def ascii_only(self) -> bool:
        """Whether stderr can show ASCII characters only."""
        return is_ascii_only(self.console)

    def banner(self, info: RunInfo, view: ViewName) -> None:
        """Prints what runs and the legend of the view, if stderr is a terminal."""
        if not self.quiet and is_terminal(self._stream):
            self._print(self._banner(info, view))

    def chat_banner(self, info: RunInfo, view: ViewName) -> None:
        """Prints what runs and how to get help, in at most five lines."""
        hint = Text("/help lists commands, Ctrl-C stops a reply, Ctrl-D leaves", style="muted")
        self.info(Text("\n").join([self._banner(info, view), hint]))

    def _banner(self, info: RunInfo, view: ViewName) -> Text:
        has_marks = decide_color(self._color, self._stream, os.environ) is ColorLevel.MARKS
        return fit_block(format_banner(info, marks=has_marks, ascii_only=self.ascii_only, view=view), self.console)

    def summary(self, report: RunReport) -> None:
        """Prints the figures of a run, unless quiet."""
        if not self.quiet:
            width = self.console.width if is_terminal(self._stream) else 100
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
        self._print(text, wraps=is_terminal(self._stream))

    def _print(self, text: object, *, wraps: bool = False) -> None:
        with suppress(OSError, ValueError):
            self.console.print(text, soft_wrap=not wraps)


@contextmanager
def loading(messages: Messages, verbosity: VerbosityOptions) -> Iterator[LoadProgress]:
    """Shows progress, and prepares the libraries that load models; import none of them before."""
    with LoadProgress(messages.console, quiet=verbosity.quiet, verbose=verbosity.verbose > 0) as progress:
        progress.stage("starting")
        prepare_libraries(verbosity.verbose > 1)
        yield progress
