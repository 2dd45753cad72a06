"""A benchmark in, its report for people out as lines of rich `Text`: table, positions, costs, what to use."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from rich.text import Text

from specgen.bench.advice import Recommendation, command_line_for
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BASELINE, BenchReport
from specgen.core.cost_model import break_even_alpha
from specgen.render.bench.columns import Column, figure_columns, method_lines, name_columns, speedup_words
from specgen.render.sanitize import one_line
from specgen.render.theme import Glyphs, glyphs

GAP = 2
"""Cells between columns."""
SMALLEST_NAME = 16
MOST_POSITIONS = 8
"""Further ones, of long `auto` drafts, are in the JSON."""
_GLUED = re.compile(r"(?<=\d) (?=%)|(?<=-k) |(?<=\d:) ")
CURVE_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17)


def format_bench(
    report: BenchReport,
    figures: Sequence[SettingFigures],
    advice: Recommendation,
    width: int,
    *,
    by_category: bool = False,
    chart: bool = False,
    ascii_only: bool = False,
) -> Text:
    """The whole report. What does not fit the width goes into further parts below; no figure is lost.

    Args:
        report: The runs.
        figures: Of all settings.
        advice: What to use.
        width: Columns of the terminal.
        by_category: A table of speedups by category.
        chart: Bars of the speedups.
        ascii_only: The terminal shows ASCII only.
    """
    signs = glyphs(ascii_only=ascii_only)
    best = None if advice.figures is None else advice.figures.index
    names = _names(figures, width, signs, ascii_only=ascii_only)
    parts = [_head(method_lines(report, ascii_only=ascii_only), width)]
    parts += fold([*names, *figure_columns(figures, best, signs)], len(names), width, marked=_row_of(figures, best))
    if chart:
        parts.append(_chart(figures, names, width, signs))
    drafting = [item for item in figures if item.setting.drafter != "none"]
    parts += _positions(drafting, _names(drafting, width, signs, ascii_only=ascii_only), width) if drafting else []
    if by_category:
        parts += _categories(report, figures, names, width, signs)
    costs = _costs(report, width, signs)
    parts += [costs] if costs is not None else []
    parts.append(format_advice(advice, width))
    return Text("\n\n").join(parts)


def format_advice(advice: Recommendation, width: int) -> Text:
    """`recommended: -d … -k …` or `do not speculate`, then why."""
    text = Text()
    if advice.figures is None:
        text.append("do not speculate", "label").append(" with these: -d none")
    else:
        text.append("recommended: ", "label").append(one_line(command_line_for(advice.figures.setting)))
    for line in textwrap.wrap(advice.reason, width, break_long_words=False, break_on_hyphens=False):
        text.append("\n").append(line)
    return text


def fold(columns: Sequence[Column], num_names: int, width: int, marked: int | None = None) -> list[Text]:
    """A table as one or several parts that fit the width, each beginning with the same columns.

    Args:
        columns: Names first.
        num_names: How many of them begin every part.
        width: Cells of a line.
        marked: A row to set off.
    """
    names, rest = list(columns[:num_names]), list(columns[num_names:])
    parts: list[list[Column]] = []
    used = 0
    for column in rest:
        if not parts or used + GAP + column.width > width:
            parts.append([*names])
            used = sum(name.width for name in names) + GAP * (num_names - 1)
        parts[-1].append(column)
        used += GAP + column.width
    return [_table(part, marked) for part in parts]


def _table(columns: Sequence[Column], marked: int | None) -> Text:
    lines = [Text((" " * GAP).join(column.cell(None) for column in columns).rstrip(), "label")]
    for row in range(len(columns[0].values)):
        style = "accepted" if row == marked else ""
        lines.append(Text((" " * GAP).join(column.cell(row) for column in columns).rstrip(), style))
    return Text("\n").join(lines)


def _row_of(figures: Sequence[SettingFigures], index: int | None) -> int | None:
    return next((row for row, item in enumerate(figures) if item.index == index), None)


def _names(figures: Sequence[SettingFigures], width: int, signs: Glyphs, *, ascii_only: bool) -> list[Column]:
    """Name columns; names are cut so far that the figures fit beside them in one part, if that leaves enough."""
    figures_width = sum(GAP + column.width for column in figure_columns(figures, None, signs)) + GAP + len("auto")
    engine_width = max(len(item.setting.backend) for item in figures)
    room = width - figures_width - len(" best") - (GAP + engine_width if engine_width else 0)
    return name_columns(figures, room if room >= SMALLEST_NAME else width // 4, signs, ascii_only=ascii_only)


def _head(lines: Sequence[str], width: int) -> Text:
    return Text("\n".join(part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="       ")))


def _chart(figures: Sequence[SettingFigures], names: Sequence[Column], width: int, signs: Glyphs) -> Text:
    """Bars of the speedups, as long as the figures are large; a bar of 1 is the target alone."""
    values = [item.speedup or 1.0 for item in figures]
    words = [speedup_words(item, signs) for item in figures]
    names_width = sum(name.width + GAP for name in names)
    room = max(width - names_width - GAP - max(len(text) for text in words), 8)
    lines = [Text("speedup over the target alone", "label")]
    for row, (value, text) in enumerate(zip(values, words, strict=True)):
        bar = signs.bar * max(round(room * value / max(values)), 1)
        name = (" " * GAP).join(column.cell(row) for column in names)
        style = "muted" if figures[row].index == BASELINE else "accepted" if value > 1 else "target"
        lines.append(Text(f"{name}  ").append(bar, style).append(f" {text}"))
    return Text("\n").join(lines)


def _positions(figures: Sequence[SettingFigures], names: Sequence[Column], width: int) -> list[Text]:
    """Acceptance at each draft position, among the tokens tested there."""
    rates = [item.counts.acceptance_by_position for item in figures]
    longest = min(max((len(row) for row in rates), default=0), MOST_POSITIONS)
    if not longest:
        return []
    columns = [
        Column(
            str(position + 1),
            tuple(
                "-" if position >= len(row) or (rate := row[position]) is None else f"{100 * rate:.0f} %"
                for row in rates
            ),
        )
        for position in range(longest)
    ]
    title = Text("acceptance by position, of the tokens tested there", "label")
    return _titled(title, fold([*names, *columns], len(names), width))


def _titled(title: Text, parts: list[Text]) -> list[Text]:
    return [Text("\n").join([title, parts[0]]), *parts[1:]]


def _categories(
    report: BenchReport, figures: Sequence[SettingFigures], names: Sequence[Column], width: int, signs: Glyphs
) -> list[Text]:
    """Speedup by category of the prompts."""
    columns = []
    for category in dict.fromkeys(prompt.category for prompt in report.prompts):
        here = {item.index: item for item in figures_by_setting(report, category)}
        cells = (speedup_words(here[item.index], signs) if item.index in here else "-" for item in figures)
        columns.append(Column(one_line(category), tuple(cells)))
    return _titled(Text("speedup by category", "label"), fold([*names, *columns], len(names), width))


def _costs(report: BenchReport, width: int, signs: Glyphs) -> Text | None:
    """v(n) in steps of the target alone, and what a draft token costs and has to bring."""
    costs = report.costs
    one = None if costs is None else costs.verify(1)
    if costs is None or not one:
        return None
    known = [n for n in CURVE_LENGTHS if n in costs.verify_seconds]
    curve = ", ".join(f"{n}: {costs.verify_seconds[n] / one:.2f}" for n in known)
    lines = [f"v(n), a pass over n tokens in steps of one ({1000 * one:.1f} ms): {curve}"]
    for label, seconds in costs.draft_seconds.items():
        what = "a proposal" if label == "lookup" else "a draft token"
        text = f"{one_line(label)}: {what} costs {seconds / one:.2f} steps"
        lengths = [n - 1 for n in (2, 3, 5, 9) if costs.verify(n) is not None]
        needs = [(k, break_even_alpha(k, costs.of(label))) for k in lengths]
        words = [f"-k {k} {'never' if need is None else f'{100 * need:.0f} %'}" for k, need in needs]
        lines.append(f"{text}; {signs.alpha} from which it pays: {', '.join(words)}")
    backend = report.settings[BASELINE].backend
    title = Text(f"costs on {backend}" if backend else "costs", "label")
    return Text("\n").join([title, *(Text(part) for line in lines for part in _wrapped(line, width))])


def _wrapped(line: str, width: int) -> list[str]:
    """Lines that keep a number and its unit, and an option and its value, together."""
    glued = _GLUED.sub("\u00a0", line)
    return [part.replace("\u00a0", " ") for part in textwrap.wrap(glued, width, subsequent_indent="  ")]
