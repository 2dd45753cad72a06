"""Where a benchmark's results go: stdout in one form, files in others, a file of raw runs after every repeat."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specgen.bench.advice import Recommendation, recommend
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BenchReport, BenchStep
from specgen.cli.bench.choices import BenchFormat
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
from specgen.render.bench.table import TableOptions, format_bench
from specgen.render.json_text import dumps
from specgen.render.jsonl import error_document
from specgen.render.plain import ByteSink
from specgen.render.terminal import ColorMode, is_ascii_only, is_terminal, make_console
from specgen.storage.output_file import check_output_path, is_output_stream, write_output
from specgen.storage.paths import private_folder, state_folder

PIPE_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""
LAST_RESULTS = "last.json"


@dataclass(frozen=True, slots=True)
class Exports:
    """Files somebody asked for. A plot's form follows its suffix."""

    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None

    def check(self) -> None:
        """Refuse what can't be written before anything is measured.

        Raises:
            OutputError: A folder is missing, or a file is one.
            SettingsError: A plot of an unknown form, or matplotlib is missing.
        """
        for path in (self.json, self.csv, self.markdown, self.plot):
            check_output_path(path, "the results")
        if self.plot is not None:
            from specgen.render.bench.plot import check_plot

            check_plot(self.plot)


class BenchOutput:
    """Results on their way out.

    Args:
        form: `auto` is the table.
        exports: Files asked for.
        color: What `--color` said.
        messages: For what is said beside the results.

    Raises:
        OutputError: stdout is closed.
    """

    def __init__(self, form: BenchFormat, exports: Exports, color: ColorMode, messages: Messages) -> None:
        require_stdout("the results")
        use_utf8_stdout()
        self.form = "table" if form == "auto" else form
        self._exports = exports
        self._color = color
        self._messages = messages
        self._sink = ByteSink(sys.stdout.buffer)
        self._started = False
        self._is_finished = False
        self._keeps_results = True

    def step(self, step: BenchStep, report: BenchReport) -> None:
        """Follow the benchmark: a line per run for ndjson, and the raw runs on disk after every prompt."""
        if self.form == "ndjson":
            if not self._started:
                self._started = True
                self._line(dumps(start_document(report)))
            if step.run is not None:
                self._line(dumps(run_document(report, step.run)))
        if step.stage in ("prompt", "repeat"):
            self.keep(report)

    def finish(self, report: BenchReport, error: SpecgenError | None, *, by_category: bool, chart: bool) -> None:
        """Write everything: files first, then stdout.

        Args:
            report: What was found.
            error: What the program will end with, for the JSON document.
            by_category: A table by category.
            chart: Bars on a terminal.

        Raises:
            OutputError: A file or stdout can't be written; the raw runs then are in the state folder.
        """
        self.keep(report)
        figures = figures_by_setting(report)
        advice = recommend(figures)
        failed = self._export(report, figures, advice)
        match self.form:
            case "json" | "ndjson":
                told = None if error is None else error_document(error)
                self._line(dumps({**bench_document(report), "error": told}))
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
            failed.is_reported = self.form in ("json", "ndjson")  # one document only; stderr has it, too
            raise failed

    def finish_empty(self, report: BenchReport, error: SpecgenError | None) -> None:
        """End before the first run: a document says so where one was asked for."""
        if self.form in ("json", "ndjson") and not self._is_finished and error is None:
            self._is_finished = True
            self._line(dumps({**bench_document(report), "error": None}))

    def fail(self, error: SpecgenError) -> None:
        """Say an error in JSON where nothing else was said in it."""
        if self.form in ("json", "ndjson") and not self._is_finished:
            self._is_finished = True
            self._line(dumps(error_document(error)))
            error.is_reported = True

    def _export(
        self, report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation
    ) -> OutputError | None:
        """Write the files asked for, each of them whatever became of the others; the first error."""
        failed = None
        for path, suffix in (
            (self._exports.json, ".json"),
            (self._exports.csv, ".csv"),
            (self._exports.markdown, ".md"),
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
        """Raw runs on disk, whatever happens next. A disk that refuses costs a warning, not the measurement."""
        if not self._keeps_results or not report.runs:
            return
        try:
            path = self._exports.json
            if path is None or is_output_stream(path):  # who reads a stream wants one document, at the end
                path = private_folder(state_folder() / "bench") / LAST_RESULTS
            write_output(path, (dumps(bench_document(report)) + "\n").encode())
        except OutputError as error:
            self._keeps_results = False
            self._messages.warning(f"the runs are not kept on disk: {error.message}")

    def _line(self, text: str) -> None:
        self._sink.write((text + "\n").encode())


def _file_bytes(report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation, suffix: str) -> bytes:
    """A file's content by its form."""
    match suffix:
        case ".json":
            return (dumps(bench_document(report)) + "\n").encode()
        case ".csv":
            return csv_text(report).encode()
        case ".md":
            return markdown_text(report, figures, advice).encode()
        case _:
            from specgen.render.bench.plot import plot_bytes

            return plot_bytes(report, figures, suffix)
