"""Writes the results of a benchmark to stdout and files, and the raw runs to the state folder after every repeat."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from specgen.bench.advice import Recommendation, recommend
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BenchReport, BenchStep
from specgen.cli.bench.options import BenchFormat, ExportOptions
from specgen.cli.stdout import require_stdout, use_utf8_stdout
from specgen.cli.streams import Messages
from specgen.core.errors import OutputError, SpecgenError
from specgen.render.bench.documents import (
    bench_document,
    csv_text,
    markdown_text,
    run_document,
    start_document,
)
from specgen.render.bench.plot import check_plot, plot_bytes
from specgen.render.bench.table import TableOptions, format_bench
from specgen.render.jsonl import dumps, error_document
from specgen.render.terminal import ColorMode, is_ascii_only, is_terminal, make_console
from specgen.render.writers import ByteWriter
from specgen.storage.output_file import check_output_path, is_output_stream, write_output
from specgen.storage.paths import private_folder, state_folder

PIPE_WIDTH = 120
"""Columns of the table if stdout is not a terminal."""
LAST_RESULTS = "last.json"


def check_exports(exports: ExportOptions) -> None:
    """Rejects files that can't be written, before anything is measured.

    Raises:
        OutputError: A folder is missing, or a file is a folder.
        SettingsError: The plot's format is unknown, or matplotlib is missing.
    """
    for path in (exports.export_json, exports.export_csv, exports.export_markdown, exports.plot):
        check_output_path(path, "the results")
    if exports.plot is not None:
        check_plot(exports.plot)


class BenchOutput:
    """Writes results.

    Args:
        format_: Of stdout; `auto` is the table.
        exports: Files to write.
        color: Value of `--color`.
        messages: Receives warnings.

    Raises:
        OutputError: stdout is closed.
    """

    def __init__(self, format_: BenchFormat, exports: ExportOptions, color: ColorMode, messages: Messages) -> None:
        require_stdout("the results")
        use_utf8_stdout()
        self.format = "table" if format_ == "auto" else format_
        self._exports = exports
        self._color = color
        self._messages = messages
        self._sink = ByteWriter(sys.stdout.buffer)
        self._is_started = False
        self._is_finished = False
        self._keeps_results = True

    def step(self, step: BenchStep, report: BenchReport) -> None:
        """Writes a line for a run if the format is ndjson, and after every prompt the raw runs to disk."""
        if self.format == "ndjson":
            if not self._is_started:
                self._is_started = True
                self._line(dumps(start_document(report)))
            if step.run is not None:
                self._line(dumps(run_document(report, step.run)))
        if step.stage in ("prompt", "repeat"):
            self.keep(report)

    def finish(self, report: BenchReport, error: SpecgenError | None, *, by_category: bool, chart: bool) -> None:
        """Writes everything: files first, then stdout.

        Args:
            report: The results.
            error: The error the program will end with, for the JSON document.
            by_category: Add a table by category.
            chart: Add bars on a terminal.

        Raises:
            OutputError: A file or stdout can't be written; the raw runs are in the state folder.
        """
        self.keep(report)
        figures = figures_by_setting(report)
        advice = recommend(figures)
        failed = self._export(report, figures, advice)
        match self.format:
            case "json" | "ndjson":
                failure = None if error is None else error_document(error)
                self._line(dumps({**bench_document(report), "error": failure}))
                if error is not None:
                    error.is_reported = True
            case "csv":
                self._sink.write(csv_text(report).encode())
            case "md":
                self._sink.write(markdown_text(report, figures, advice).encode())
            case _:
                self._table(report, by_category=by_category, chart=chart)
        self._is_finished = True
        if failed is not None:
            failed.is_reported = self.format in ("json", "ndjson")  # one document only; stderr has it, too
            raise failed

    def finish_empty(self, report: BenchReport, error: SpecgenError | None) -> None:
        """Writes the JSON document of a benchmark without a finished run, if the format is JSON."""
        if self.format in ("json", "ndjson") and not self._is_finished and error is None:
            self._is_finished = True
            self._line(dumps({**bench_document(report), "error": None}))

    def fail(self, error: SpecgenError) -> None:
        """Writes an error as a JSON document, if the format is JSON and no document is written yet."""
        if self.format in ("json", "ndjson") and not self._is_finished:
            self._is_finished = True
            self._line(dumps(error_document(error)))
            error.is_reported = True

    def _export(
        self, report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation
    ) -> OutputError | None:
        """Writes all files, even if one fails, and returns the first error."""
        failed = None
        for path, suffix in (
            (self._exports.export_json, ".json"),
            (self._exports.export_csv, ".csv"),
            (self._exports.export_markdown, ".md"),
            (self._exports.plot, ""),
        ):
            if path is None:
                continue
            try:
                write_output(path, _file_bytes(report, figures, advice, suffix or path.suffix.lower()))
            except OutputError as error:
                failed = failed or error
        return failed

    def _table(self, report: BenchReport, *, by_category: bool, chart: bool) -> None:
        console = make_console(sys.stdout, self._color, os.environ)
        on_terminal = is_terminal(sys.stdout)
        figures = figures_by_setting(report)
        console.print(
            format_bench(
                report,
                figures,
                recommend(figures),
                TableOptions(
                    console.width if on_terminal else PIPE_WIDTH,
                    by_category=by_category,
                    has_chart=chart and on_terminal,
                    ascii_only=is_ascii_only(console),
                ),
            )
        )

    def keep(self, report: BenchReport) -> None:
        """Writes the raw runs to disk. If that fails, a warning is printed and the measurement continues."""
        if not self._keeps_results or not report.runs:
            return
        try:
            path = self._exports.export_json
            if path is None or is_output_stream(path):  # a stream gets one document, at the end
                path = private_folder(state_folder() / "bench") / LAST_RESULTS
            write_output(path, (dumps(bench_document(report)) + "\n").encode())
        except OutputError as error:
            self._keeps_results = False
            self._messages.warning(f"the runs are not kept on disk: {error.message}")

    def _line(self, text: str) -> None:
        self._sink.write((text + "\n").encode())


def _file_bytes(report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation, suffix: str) -> bytes:
    """Returns the content of a file by its suffix."""
    match suffix:
        case ".json":
            return (dumps(bench_document(report)) + "\n").encode()
        case ".csv":
            return csv_text(report).encode()
        case ".md":
            return markdown_text(report, figures, advice).encode()
        case _:
            return plot_bytes(report, figures, suffix)
