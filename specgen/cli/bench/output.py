"""Writes the results of a benchmark to stdout and files, and the raw runs to the state folder after every prompt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from specgen.bench.advice import Recommendation, recommend
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BenchReport, BenchStep
from specgen.bench.warnings import warnings_of
from specgen.cli.bench.options import BenchFormat, BenchTableOptions, ResultFileOptions
from specgen.cli.streams import Messages, require_stdout, use_utf8_stdout
from specgen.core.errors import OutputError, SpecgenError
from specgen.render.bench.documents import bench_document, csv_text, markdown_text, run_document, start_document
from specgen.render.bench.plot import check_plot, plot_bytes
from specgen.render.bench.table import TableOptions, format_bench
from specgen.render.jsonl import Document, dumps, error_document
from specgen.render.terminal import ColorMode, is_ascii_only, is_terminal, make_console
from specgen.render.writers import ByteWriter
from specgen.storage.atomic_write import check_output_path, is_output_stream, write_output
from specgen.storage.folders import private_folder, state_folder

PIPE_WIDTH = 120
"""Columns of the table if stdout is not a terminal."""
LAST_RESULTS = "last.json"


class BenchOutput:
    """Writes results: to stdout in the given format, where `auto` is the table, and to the files of `exports`.

    Raises:
        OutputError: stdout is closed, the folder of a file is missing, or a file is a folder.
        SettingsError: The plot's format is unknown, or matplotlib is missing.
    """

    def __init__(self, format_: BenchFormat, exports: ResultFileOptions, color: ColorMode, messages: Messages) -> None:
        for path in (exports.export_json, exports.export_csv, exports.export_markdown, exports.plot):
            check_output_path(path, "the results")
        if exports.plot is not None:
            check_plot(exports.plot)
        require_stdout("the results")
        use_utf8_stdout()
        self._format = format_
        self._is_json = format_ in ("json", "ndjson")
        self._exports = exports
        self._color = color
        self._messages = messages
        self._sink = ByteWriter(sys.stdout.buffer)
        self._is_finished = False
        self._keeps_results = True

    def step(self, step: BenchStep, report: BenchReport) -> None:
        """Writes a line for a run if the format is ndjson, and after every prompt the raw runs to disk."""
        if self._format == "ndjson":
            if step.stage == "reading":  # the first step
                self._sink.write(_json_line(start_document(report)))
            if step.run is not None:
                self._sink.write(_json_line(run_document(report, step.run)))
        if step.stage in ("prompt", "repeat"):
            self.keep(report)

    def finish(self, report: BenchReport, error: SpecgenError | None, tables: BenchTableOptions) -> None:
        """Writes everything: files first, then stdout, then warnings about the results.

        The JSON document contains `error`, the error that the program will end with.

        Raises:
            OutputError: A file or stdout can't be written; the raw runs are in the state folder.
        """
        if not report.runs:
            self._messages.warning("no run finished")
            if self._is_json and error is None:
                self._finish_json({**bench_document(report), "error": None})
            return
        self.keep(report)
        figures = figures_by_setting(report)
        advice = recommend(figures)
        failed = self._export(report, figures, advice)
        if self._is_json:
            self._finish_json({**bench_document(report), "error": None if error is None else error_document(error)})
            if error is not None:
                error.is_reported = True
        elif self._format == "csv":
            self._sink.write(csv_text(report).encode())
        elif self._format == "md":
            self._sink.write(markdown_text(report, figures, advice).encode())
        else:
            self._print_table(report, figures, advice, tables)
        if failed is not None:
            failed.is_reported = self._is_json  # one document only; stderr has it, too
            raise failed
        for warning in warnings_of(report):
            self._messages.warning(warning.message)

    def fail(self, error: SpecgenError) -> None:
        """Writes an error as a JSON document, if the format is JSON and no document is written yet."""
        if self._is_json and not self._is_finished:
            self._finish_json(error_document(error))
            error.is_reported = True

    def keep(self, report: BenchReport) -> None:
        """Writes the raw runs to disk. If that fails, a warning is printed and the measurement continues."""
        if not self._keeps_results or not report.runs:
            return
        try:
            path = self._exports.export_json
            if path is None or is_output_stream(path):  # a stream gets one document, at the end
                path = private_folder(state_folder() / "bench") / LAST_RESULTS
            write_output(path, _json_line(bench_document(report)))
        except OutputError as error:
            self._keeps_results = False
            self._messages.warning(f"the runs are not kept on disk: {error.message}")

    def _finish_json(self, document: Document) -> None:
        self._sink.write(_json_line(document))
        self._is_finished = True

    def _export(
        self, report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation
    ) -> OutputError | None:
        """Writes all files, even if one fails, and returns the first error."""
        exports = self._exports
        contents: tuple[tuple[Path | None, Callable[[Path], bytes]], ...] = (
            (exports.export_json, lambda _: _json_line(bench_document(report))),
            (exports.export_csv, lambda _: csv_text(report).encode()),
            (exports.export_markdown, lambda _: markdown_text(report, figures, advice).encode()),
            (exports.plot, lambda path: plot_bytes(report, figures, path.suffix.lower())),
        )
        failed = None
        for path, content in contents:
            if path is not None:
                try:
                    write_output(path, content(path))
                except OutputError as error:
                    failed = failed or error
        return failed

    def _print_table(
        self, report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation, tables: BenchTableOptions
    ) -> None:
        console = make_console(sys.stdout, self._color, os.environ)
        on_terminal = is_terminal(sys.stdout)
        options = TableOptions(
            console.width if on_terminal else PIPE_WIDTH,
            by_category=tables.by_category,
            has_chart=tables.chart and on_terminal,
            ascii_only=is_ascii_only(console),
        )
        console.print(format_bench(report, figures, advice, options))


def _json_line(document: Document) -> bytes:
    return (dumps(document) + "\n").encode()
