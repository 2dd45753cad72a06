"""Where the answer goes: a view, JSON, a file; and what the person at the terminal is told beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from rich.console import Console
from rich.text import Text

from specgen.cli.options import Format
from specgen.cli.stdout import require_stdout, write_utf8
from specgen.core.errors import OutputError, SpecgenError
from specgen.core.events import FinalText, Notice, RoundText, TextEvent
from specgen.core.results import RunInfo, RunReport
from specgen.render.json_text import Document, dumps
from specgen.render.jsonl import NdjsonView, error_document, result_document, start_document
from specgen.render.messages import fitted, format_banner, format_error, format_notice
from specgen.render.plain import ByteSink
from specgen.render.summary import format_summary
from specgen.render.terminal import ColorLevel, ColorMode, decide_color, is_ascii_only, is_terminal, make_console
from specgen.render.view import View
from specgen.render.views import SanitizeMode, ViewName, choose_view, resolve_view
from specgen.storage.atomic_write import check_output_path, write_output


class Messages:
    """What is said on stderr. A stderr that is closed or full changes nothing about the answer.

    Args:
        color: What `--color` said.
        quiet: Only errors.
        environ: The environment.
    """

    def __init__(self, color: ColorMode, quiet: bool, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._color = color
        self.quiet = quiet
        # A closed stderr is None in Python; the null device takes everything.
        stream: IO[str] = sys.stderr if sys.stderr is not None else open(os.devnull, "w")  # noqa: SIM115
        self.stream = stream
        self.console = make_console(stream, color, self._environ)

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return is_terminal(self.stream)

    def banner(self, info: RunInfo, view: ViewName) -> None:
        """What runs and what the view's signs mean, before the first token; for people at a terminal only."""
        if not self.quiet and self.is_terminal:
            self._print(self._banner(info, view))

    def chat_banner(self, info: RunInfo, view: ViewName) -> None:
        """What runs, and where to find help; at most five lines."""
        hint = Text("/help lists commands, Ctrl-C stops a reply, Ctrl-D leaves", style="muted")
        self.note(Text("\n").join([self._banner(info, view), hint]))

    def _banner(self, info: RunInfo, view: ViewName) -> Text:
        ascii_only = is_ascii_only(self.console)
        banner = format_banner(info, marks=self._has_marks(), ascii_only=ascii_only, view=view)
        return fitted(banner, self.console)

    def summary(self, report: RunReport) -> None:
        """The figures of a run, unless quiet."""
        if not self.quiet:
            width = self.console.width if self.is_terminal else 100
            self._print(format_summary(report, width, ascii_only=is_ascii_only(self.console)))

    def warning(self, message: str) -> None:
        """A notice, unless quiet."""
        if not self.quiet:
            self.note(format_notice(Notice("notice", message), ascii_only=is_ascii_only(self.console)))

    def note(self, text: Text) -> None:
        """Something nobody asked for, wrapped at words."""
        if not self.quiet:
            self.tell(text)

    def tell(self, text: Text) -> None:
        """What somebody did ask for, said under `--quiet` as well; in a pipe one line stays one line."""
        self._print(text, wraps=self.is_terminal)

    def error(self, error: SpecgenError) -> None:
        """The two lines of an error, quiet or not."""
        self.tell(format_error(error, ascii_only=is_ascii_only(self.console)))

    def _has_marks(self) -> bool:
        return decide_color(self._color, self.stream, self._environ).level is ColorLevel.MARKS

    def _print(self, text: object, *, wraps: bool = False) -> None:
        try:
            self.console.print(text, soft_wrap=not wraps)
        except (OSError, ValueError):
            return


class Answer:
    """The answer's way out: stdout in the wanted form, and a file if one was named.

    Args:
        form: `auto` and `text` write the answer, `json` one document, `ndjson` an event per line.
        view: What `--view` said.
        color: What `--color` said.
        sanitize_mode: What `--sanitize` said.
        path: A file that gets the plain answer as well.

    Raises:
        OutputError: stdout is closed, the file's folder does not exist, or the file is a folder.
    """

    def __init__(
        self, form: Format, view: ViewName, color: ColorMode, sanitize_mode: SanitizeMode, path: Path | None
    ) -> None:
        require_stdout("the answer")
        check_output_path(path, "the answer")
        self.form = form
        self._path = path
        self._is_finished = False
        self._text: list[str] = []
        binary: BinaryIO = sys.stdout.buffer
        self._json = NdjsonView(binary) if form == "ndjson" else None
        self._document_sink = ByteSink(binary) if form == "json" else None
        self.view: View | None = None
        self.view_name: ViewName = "off"
        if form in ("auto", "text"):
            # The console writes text; an ASCII locale must not turn the answer into an exception.
            write_utf8()
            console: Console = make_console(sys.stdout, color, os.environ)
            self.view_name = resolve_view(view, is_terminal=is_terminal(sys.stdout), color=color)
            self._new_view = partial(
                choose_view,
                self.view_name,
                console=console,
                binary=binary,
                is_terminal=is_terminal(sys.stdout),
                color=color,
                sanitize_mode=sanitize_mode,
            )
            self.view = self._new_view()

    def start(self, info: RunInfo) -> None:
        """What runs, where the form has a place for it."""
        if self._json is not None:
            self._json.write(start_document(info, datetime.now(UTC)))

    def show(self, event: TextEvent) -> None:
        """Show an event.

        Raises:
            BrokenPipeError: The reader of stdout is gone.
            OutputError: stdout takes nothing more.
        """
        if isinstance(event, RoundText):
            self._text.append(event.kept)
        elif isinstance(event, FinalText):
            self._text.append(event.text)
        target = self.view if self.view is not None else self._json
        if target is not None:
            target.show(event)

    def renew(self) -> None:
        """Go on with a fresh view: the shell has written since, so an erasable tail is somewhere else now."""
        if self.view is not None:
            self.view = self._new_view()

    def close(self) -> None:
        """End the last line and put the terminal back; can be called again."""
        if self.view is not None:
            self.view.close()

    def finish(self, report: RunReport) -> None:
        """Write the document that comes after the text, once."""
        if self._is_finished:
            return
        self._is_finished = True
        if self._json is not None:
            self._json.write(result_document(report))
        if self._document_sink is not None:
            self._document_sink.write((dumps(result_document(report)) + "\n").encode())

    def fail(self, error: SpecgenError, report: RunReport | None) -> None:
        """Say in JSON that a run failed. `--json` stays one document: the result so far, with the error in it."""
        if self._is_finished:
            return
        self._is_finished = True
        document = error_document(error)
        if self._json is not None:
            if report is not None:
                self._json.write(result_document(report))
            self._json.write(document)
        if self._document_sink is not None:
            whole = document if report is None else {**result_document(report), "error": document}
            self._document_sink.write((dumps(whole) + "\n").encode())

    @property
    def has_text(self) -> bool:
        """Whether any text of the answer has come."""
        return any(self._text)

    def save(self) -> None:
        """Write the file, whole or not at all. Tried once.

        Raises:
            OutputError: The file can't be written; the answer is on stdout.
        """
        path, self._path = self._path, None
        if path is None:
            return
        text = "".join(self._text)
        text = text if text.endswith("\n") or not text else text + "\n"
        write_output(path, text.encode("utf-8", "replace"))


def internal_error(error: Exception) -> SpecgenError:
    """How a bug of ours is told, and a device that broke under us."""
    if type(error).__name__ == "AcceleratorError" or "device-side assert" in str(error):
        return SpecgenError(
            f"the device failed: {str(error).splitlines()[0]}", "start specgen again: the device is lost to this run"
        )
    return SpecgenError(f"unexpected {type(error).__name__}: {error}", "this is a bug; run again with -vv for details")


def write_error(error: SpecgenError) -> None:
    """The JSON document of an error that came before there was an `Answer` to tell it. A full stdout adds no other."""
    with suppress(BrokenPipeError, OutputError):
        write_document(error_document(error))


def write_document(document: Document) -> None:
    """One JSON document on stdout.

    Raises:
        BrokenPipeError: The reader is gone.
        OutputError: stdout is closed or takes nothing more.
    """
    _write_bytes((dumps(document) + "\n").encode())


def print_text(text: Text, color: ColorMode) -> None:
    """What a command was asked to find out, lines made by `labelled`, on stdout; raises like `write_document`."""
    if sys.stdout is None:
        _write_bytes(b"")
    console = make_console(sys.stdout, color, os.environ)
    with console.capture() as captured:
        console.print(fitted(text, console), soft_wrap=True)
    _write_bytes(captured.get().encode())


def _write_bytes(data: bytes) -> None:
    require_stdout("the answer")
    ByteSink(sys.stdout.buffer).write(data)


def silence_stdout() -> None:
    """Point stdout at the null device: the interpreter flushes it once more on its way out."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
