"""Formats a benchmark for people: the table, acceptance by position, costs, and what to use."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from specgen.bench.advice import Recommendation, command_line_for
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BASELINE, BenchReport
from specgen.render.bench.columns import (
    NOTHING,
    Column,
    figure_columns,
    method_lines,
    name_columns,
    percent,
    speedup_cell,
)
from specgen.render.formatting import format_break_even, format_milliseconds
from specgen.render.sanitize import one_line
from specgen.render.theme import Glyphs, glyphs

GAP = 2
"""Cells between columns."""
MIN_NAME_CELLS = 16
MAX_POSITIONS = 8
"""Further ones, of long `auto` drafts, are in the JSON."""
_NO_BREAK = re.compile(r"(?<=\d) (?=%)|(?<=-k) |(?<=\d:) ")
CURVE_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17)
BREAK_EVEN_PASSES = (2, 3, 5, 9)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How `format_bench` shows a report: the columns of the terminal, and parts to add."""

    width: int
    by_category: bool = False
    has_chart: bool = False
    ascii_only: bool = False

    @property
    def symbols(self) -> Glyphs:
        """The symbols that the terminal can show."""
        return glyphs(ascii_only=self.ascii_only)


def format_bench(
    report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation, options: TableOptions
) -> Text:
    """Formats the whole report. Columns that do not fit the width go into further parts below."""
    best = None if advice.figures is None else advice.figures.index
    best_row = next((row for row, item in enumerate(figures) if item.index == best), None)
    names = _names(figures, options)
    parts = [_method(report, options)]
    parts += _fold(names, figure_columns(figures, best, options.symbols), options.width, best_row)
    if options.has_chart:
        parts.append(_chart(figures, names, options))
    drafting = [item for item in figures if item.setting.has_drafter]
    parts += _positions(drafting, options) if drafting else []
    if options.by_category:
        parts += _categories(report, figures, names, options)
    parts += _costs(report, options)
    return Text("\n\n").join([*parts, format_advice(advice, options.width)])


def format_advice(advice: Recommendation, width: int) -> Text:
    """Formats `recommended: -d … -k …` or `do not speculate`, then the reason."""
    text = Text()
    if advice.figures is None:
        text.append("do not speculate", "label").append(" with these: -d none")
    else:
        text.append("recommended: ", "label").append(one_line(command_line_for(advice.figures.setting)))
    for line in textwrap.wrap(advice.reason, width, break_long_words=False, break_on_hyphens=False):
        text.append("\n").append(line)
    return text


def _fold(names: Sequence[Column], columns: Sequence[Column], width: int, marked: int | None = None) -> list[Text]:
    """Formats a table in one or several parts that fit the width, each beginning with the names.

    The row `marked` is highlighted.
    """
    parts: list[list[Column]] = []
    used = 0
    for column in columns:
        if not parts or used + GAP + column.width > width:
            parts.append([*names])
            used = sum(name.width for name in names) + GAP * (len(names) - 1)
        parts[-1].append(column)
        used += GAP + column.width
    return [_table(part, marked) for part in parts]


def _table(columns: Sequence[Column], marked: int | None) -> Text:
    lines = [Text(_row(columns, None).rstrip(), "label")]
    for row in range(len(columns[0].values)):
        lines.append(Text(_row(columns, row).rstrip(), "accepted" if row == marked else ""))
    return Text("\n").join(lines)


def _row(columns: Sequence[Column], row: int | None) -> str:
    return (" " * GAP).join(column.padded(row) for column in columns)


def _names(figures: Sequence[SettingFigures], options: TableOptions) -> list[Column]:
    """Returns the name columns; names are cut so that all figures fit into one part, if enough of them remains."""
    columns = figure_columns(figures, None, options.symbols)
    figures_width = sum(GAP + column.width for column in columns) + GAP + len("auto")
    others = [
        column
        for column in name_columns(figures, None, ascii_only=options.ascii_only)
        if column.head not in ("draft", "k", "tree")
    ]
    room = options.width - figures_width - len(" best") - sum(GAP + column.width for column in others)
    num_cells = room if room >= MIN_NAME_CELLS else options.width // 4
    return name_columns(figures, num_cells, ascii_only=options.ascii_only)


def _method(report: BenchReport, options: TableOptions) -> Text:
    lines = method_lines(report, ascii_only=options.ascii_only)
    return Text("\n".join(part for x in lines for part in textwrap.wrap(x, options.width, subsequent_indent="       ")))


def _chart(figures: Sequence[SettingFigures], names: Sequence[Column], options: TableOptions) -> Text:
    """Formats bars proportional to the speedups; the baseline's bar has length 1."""
    values = [item.speedup or 1.0 for item in figures]
    cells = [speedup_cell(item, options.symbols) for item in figures]
    names_width = sum(name.width + GAP for name in names)
    room = max(options.width - names_width - GAP - max(len(cell) for cell in cells), 8)
    lines = [Text("speedup over the target alone", "label")]
    for row, (value, cell) in enumerate(zip(values, cells, strict=True)):
        bar = options.symbols.bar * max(round(room * value / max(values)), 1)
        style = "muted" if figures[row].is_baseline else "accepted" if value > 1 else "target"
        lines.append(Text(f"{_row(names, row)}  ").append(bar, style).append(f" {cell}"))
    return Text("\n").join(lines)


def _positions(figures: Sequence[SettingFigures], options: TableOptions) -> list[Text]:
    """Formats the acceptance of the tokens tested at each position of the drafts."""
    rates = [item.counts.acceptance_by_position for item in figures]
    num_positions = min(max(map(len, rates)), MAX_POSITIONS)
    columns = [
        Column(str(position + 1), tuple(percent(row[position]) if position < len(row) else NOTHING for row in rates))
        for position in range(num_positions)
    ]
    title = "acceptance by position, of the tokens tested there"
    return _titled(title, _fold(_names(figures, options), columns, options.width))


def _titled(title: str, parts: list[Text]) -> list[Text]:
    return [Text("\n").join([Text(title, "label"), parts[0]]), *parts[1:]] if parts else []


def _categories(
    report: BenchReport, figures: Sequence[SettingFigures], names: Sequence[Column], options: TableOptions
) -> list[Text]:
    """Formats the speedups by category of the prompts."""
    columns = []
    for category in dict.fromkeys(prompt.category for prompt in report.prompts):
        cells = {item.index: speedup_cell(item, options.symbols) for item in figures_by_setting(report, category)}
        columns.append(Column(one_line(category), tuple(cells.get(item.index, NOTHING) for item in figures)))
    return _titled("speedup by category", _fold(names, columns, options.width))


def _costs(report: BenchReport, options: TableOptions) -> list[Text]:
    """Formats v(n), the cost of a draft token, and the acceptance from which drafts pay; nothing without costs."""
    costs = report.costs
    one = None if costs is None else costs.verify(1)
    if costs is None or not one:
        return []
    known = [n for n in CURVE_LENGTHS if n in costs.verify_seconds]
    curve = ", ".join(f"{n}: {costs.verify_seconds[n] / one:.2f}" for n in known)
    lines = [f"v(n), a pass over n tokens in units of one token ({format_milliseconds(one)}): {curve}"]
    lengths = [n - 1 for n in BREAK_EVEN_PASSES if costs.verify(n) is not None]
    for label, seconds in costs.draft_seconds.items():
        unit = "a proposal" if label == "lookup" else "a draft token"
        cost = f"{one_line(label)}: {unit} costs {seconds / one:.2f} passes over one token"
        lines.append(f"{cost}; pays from {options.symbols.alpha}: {format_break_even(costs.of(label), lengths)}")
        if by_rows := costs.tree_pass_seconds.get(label):
            in_trees = ", ".join(f"{n}: {seconds / one:.2f}" for n, seconds in sorted(by_rows.items()))
            lines.append(f"{one_line(label)}: a pass over n tokens of a tree, in the same unit: {in_trees}")
    backend = report.settings[BASELINE].backend
    wrapped = [Text(part) for line in lines for part in _wrapped(line, options.width)]
    return [Text("\n").join([Text(f"costs on {backend}" if backend else "costs", "label"), *wrapped])]


def _wrapped(line: str, width: int) -> list[str]:
    """Wraps a line, but keeps a number and its unit, and an option and its value, together."""
    unbreakable = _NO_BREAK.sub("\u00a0", line)
    return [part.replace("\u00a0", " ") for part in textwrap.wrap(unbreakable, width, subsequent_indent="  ")]
