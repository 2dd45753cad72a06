"""Writes an answer to stdout, as a view or as JSON, and to the file of `--output`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from specgen.cli.generate.options import OutputOptions
from specgen.cli.streams import ViewOptions, require_stdout, use_utf8_stdout, write_document
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.events import FinalText, RoundText, ServedText, TextEvent
from specgen.core.results import RunInfo, RunReport
from specgen.render.jsonl import error_document, result_document, start_document
from specgen.render.view import View
from specgen.render.views import NdjsonView
from specgen.storage.atomic_write import check_output_path, write_output


class AnswerOutput:
    """The destinations of one answer: stdout in the chosen format, and a file if one was named.

    Raises:
        SettingsError: Two formats are given.
        OutputError: stdout is closed, the folder of the file does not exist, or the file is a folder.
    """

    def __init__(self, options: OutputOptions) -> None:
        if options.json and options.format not in ("auto", "json"):
            raise SettingsError(f"--json and --format {options.format} exclude each other", "give one of them")
        require_stdout("the answer")
        check_output_path(options.file, "the answer")
        format_ = "json" if options.json else options.format
        self._is_json = format_ == "json"
        self._ndjson = NdjsonView(sys.stdout.buffer) if format_ == "ndjson" else None
        self.view_options = ViewOptions(options.view, options.color, options.sanitize)
        self._path = options.file
        self._text: list[str] = []
        self._is_finished = False
        self._view: View | None = None
        if not self.writes_report:
            # The console writes text; an ASCII locale must not turn the answer into an exception.
            use_utf8_stdout()
            self._view = self.view_options.new_view()

    @property
    def writes_report(self) -> bool:
        """Whether the format is JSON, which contains the report of the run."""
        return self._is_json or self._ndjson is not None

    @property
    def has_text(self) -> bool:
        """Whether the answer has any text yet."""
        return any(self._text)

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
        elif isinstance(event, ServedText | FinalText):
            self._text.append(event.text)
        if (view := self._view or self._ndjson) is not None:
            view.show(event)

    def restart_view(self) -> None:
        """Continues in a new view. After Ctrl-Z the shell has written to the terminal: the cursor is elsewhere."""
        if self._view is not None:
            self._view = self.view_options.new_view()

    def close(self) -> None:
        """Ends the last line and restores the terminal. Can be called again."""
        if self._view is not None:
            self._view.close()

    def finish(self, report: RunReport | None, error: SpecgenError | None = None) -> None:
        """Writes the JSON documents that follow the text, once.

        Args:
            report: The result, or what there is of it.
            error: What ended the run. `json` stays one document: the result so far, and the error in it.
        """
        if self._is_finished:
            return
        self._is_finished = True
        documents = [] if report is None else [result_document(report)]
        if error is not None:
            documents.append(error_document(error))
        if self._ndjson is not None:
            for document in documents:
                self._ndjson.write(document)
        elif self._is_json and len(documents) == 2:
            write_document({**documents[0], "error": documents[1]})
        elif self._is_json:
            write_document(documents[0])

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
