"""Writes an answer to stdout, as a view or as JSON, and to the file of `--output`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from specgen.cli.options.groups import Format
from specgen.cli.stdout import require_stdout, use_utf8_stdout
from specgen.cli.streams import write_document
from specgen.cli.view_options import ViewOptions
from specgen.core.errors import SpecgenError
from specgen.core.events import FinalText, RoundText, TextEvent
from specgen.core.results import RunInfo, RunReport
from specgen.render.jsonl import error_document, result_document, start_document
from specgen.render.view import View
from specgen.render.views import NdjsonView, ViewName
from specgen.storage.output_file import check_output_path, write_output


class AnswerOutput:
    """The destinations of one answer: stdout in the chosen format, and a file if one was named.

    Args:
        output_format: `auto` and `text` write the answer, `json` one document, `ndjson` one document per event.
        options: How `auto` and `text` show the answer.
        path: File that gets the plain answer as well.

    Raises:
        OutputError: stdout is closed, the folder of the file does not exist, or the file is a folder.
    """

    def __init__(self, output_format: Format, options: ViewOptions, path: Path | None) -> None:
        require_stdout("the answer")
        check_output_path(path, "the answer")
        self._format = output_format
        self._options = options
        self._path = path
        self._is_finished = False
        self._text: list[str] = []
        self._ndjson = NdjsonView(sys.stdout.buffer) if output_format == "ndjson" else None
        self.view: View | None = None
        self.view_name: ViewName = "off"
        if output_format in ("auto", "text"):
            # The console writes text; an ASCII locale must not turn the answer into an exception.
            use_utf8_stdout()
            self.view_name = options.resolved_view
            self.view = options.new_view()

    def start(self, info: RunInfo) -> None:
        """Writes what runs, in the format that has a document for it."""
        if self._ndjson is not None:
            self._ndjson.write(start_document(info, datetime.now(UTC)))

    def show(self, event: TextEvent) -> None:
        """Shows an event.

        Raises:
            BrokenPipeError: The reader of stdout has closed the pipe.
            OutputError: stdout accepts no more data.
        """
        if isinstance(event, RoundText):
            self._text.append(event.kept)
        elif isinstance(event, FinalText):
            self._text.append(event.text)
        view = self.view if self.view is not None else self._ndjson
        if view is not None:
            view.show(event)

    def restart_view(self) -> None:
        """Continues in a new view. After Ctrl-Z the shell has written to the terminal: the cursor is elsewhere."""
        if self.view is not None:
            self.view = self._options.new_view()

    def close(self) -> None:
        """Ends the last line and restores the terminal. Can be called again."""
        if self.view is not None:
            self.view.close()

    def finish(self, report: RunReport) -> None:
        """Writes the document that follows the text, once."""
        if self._is_finished:
            return
        self._is_finished = True
        if self._ndjson is not None:
            self._ndjson.write(result_document(report))
        elif self._format == "json":
            write_document(result_document(report))

    def fail(self, error: SpecgenError, report: RunReport | None) -> None:
        """Reports in JSON that a run failed. `json` stays one document: the result so far, and the error in it."""
        if self._is_finished:
            return
        self._is_finished = True
        failure = error_document(error)
        if self._ndjson is not None:
            if report is not None:
                self._ndjson.write(result_document(report))
            self._ndjson.write(failure)
        elif self._format == "json":
            write_document(failure if report is None else {**result_document(report), "error": failure})

    @property
    def has_text(self) -> bool:
        """Whether the answer has any text yet."""
        return any(self._text)

    def save(self) -> None:
        """Writes the file of `--output`, whole or not at all. Only the first call writes.

        Raises:
            OutputError: The file can't be written; the answer is on stdout.
        """
        path, self._path = self._path, None
        if path is None:
            return
        text = "".join(self._text)
        text = text if text.endswith("\n") or not text else text + "\n"
        write_output(path, text.encode("utf-8", "replace"))
