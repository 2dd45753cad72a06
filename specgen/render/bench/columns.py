"""Figures of a benchmark in, columns of words out: one wording for the table, Markdown and the chart. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from specgen.bench.figures import SettingFigures
from specgen.bench.results import BenchReport
from specgen.core.units import format_size
from specgen.render.formatting import format_count, format_drafter, format_duration, format_model
from specgen.render.sanitize import one_line
from specgen.render.text_width import cut_to_cells
from specgen.render.theme import Glyphs

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        head: Its heading.
        values: A cell per row.
        is_left: Aligned to the left, as names are.
    """

    head: str
    values: tuple[str, ...]
    is_left: bool = False

    @property
    def width(self) -> int:
        """Cells that the head and the widest value take on a terminal."""
        return max(cell_len(text) for text in (self.head, *self.values))

    def cell(self, row: int | None) -> str:
        """A cell filled up to the column's width; None for the heading."""
        text = self.head if row is None else self.values[row]
        space = " " * (self.width - cell_len(text))
        return text + space if self.is_left else space + text


def method_lines(report: BenchReport, *, ascii_only: bool) -> list[str]:
    """What was measured and how, which no figure is told without.

    Args:
        report: The runs.
        ascii_only: The terminal shows ASCII only.
    """
    config = report.config
    prompts, repeats = (
        format_count(len({getattr(run, what) for run in report.runs}), what) for what in ("prompt", "repeat")
    )
    how = "greedy" if config.sampling.is_greedy else f"temperature {config.sampling.temperature:g}"
    targets = [report.target, *([report.other_target] if report.other_target else [])]
    drafters = {setting.label: setting.drafter for setting in report.settings}
    drafts = [
        format_drafter(report.drafts.get(label), drafter, ascii_only=ascii_only)
        for label, drafter in drafters.items()
        if drafter != "none"
    ]
    return [
        *(f"target {format_model(target, ascii_only=ascii_only)}" for target in targets),
        *(f"draft  {words}" for words in drafts),
        f"{config.num_tokens} tokens x {prompts} x {repeats}, {how}",
    ]


def name_columns(
    figures: Sequence[SettingFigures], num_cells: int | None, signs: Glyphs, *, ascii_only: bool
) -> list[Column]:
    """Engine where two are compared, draft and draft length: what every part of a table begins with.

    Args:
        figures: The rows.
        num_cells: Widest name; None: not cut.
        signs: For the cut.
        ascii_only: The terminal shows ASCII only.
    """
    names = [one_line(item.setting.label, ascii_only=ascii_only) for item in figures]
    if num_cells is not None:
        names = [shorten(name, num_cells, signs.cut) for name in names]
    lengths = [NOTHING if item.setting.drafter == "none" else item.setting.length for item in figures]
    columns = [Column("draft", tuple(names), is_left=True), Column("k", tuple(lengths))]
    if any(item.setting.backend for item in figures):
        columns.insert(0, Column("engine", tuple(item.setting.backend for item in figures), is_left=True))
    return columns


def shorten(name: str, num_cells: int, cut: str) -> str:
    """A name cut in its middle: what stands at its end, form of the weights or lookup, tells two drafts apart."""
    if cell_len(name) <= num_cells:
        return name
    last_word = name[last:] if (last := max(name.rfind(" "), name.rfind("+"))) >= 0 else ""
    tail = last_word if 0 < cell_len(last_word) <= num_cells // 2 else name[-(num_cells // 3) :]
    return cut_to_cells(name, num_cells - cell_len(tail), cut) + tail


def figure_columns(figures: Sequence[SettingFigures], best: int | None, signs: Glyphs) -> list[Column]:
    """All figures, the most wanted first.

    Args:
        figures: The rows.
        best: Index of the recommended setting, marked by a word.
        signs: For α.
    """

    def column(head: str, words: Callable[[SettingFigures], str]) -> Column:
        return Column(head, tuple(words(item) for item in figures))

    return [
        column("tok/s", lambda f: _number(f.counts.tokens_per_second, 1)),
        column("speedup", lambda f: speedup_words(f, signs) + (" best" if f.index == best else "")),
        column("TAR", lambda f: _percent(f.counts.acceptance_rate)),
        column("tok/round", lambda f: _number(f.counts.block_efficiency, 2)),
        column("text", _text),
        column(signs.alpha, lambda f: _percent(f.counts.alpha)),
        column("predicted", lambda f: NOTHING if f.predicted_speedup is None else f"{f.predicted_speedup:.2f}x"),
        column("drafting", lambda f: _percent(f.counts.draft_share) if f.setting.drafter != "none" else NOTHING),
        column("TTFT", lambda f: NOTHING if f.ttft_seconds is None else format_duration(f.ttft_seconds)),
        column("memory", lambda f: NOTHING if f.peak_memory_bytes is None else format_size(f.peak_memory_bytes)),
    ]


def speedup_words(figures: SettingFigures, signs: Glyphs) -> str:
    """`1.62x ±0.02`: half of the 95 % interval, where there is one; `±?` if it is wider than the figure is large."""
    if figures.speedup is None:
        return "1.00x" if figures.setting.drafter == "none" else NOTHING
    if figures.interval is None:
        return f"{figures.speedup:.2f}x"
    half = figures.interval.half_width
    # Two repeats that disagree give intervals of any size, whose digits say nothing.
    return f"{figures.speedup:.2f}x {signs.plus_minus}" + (f"{half:.2f}" if half < figures.speedup else "?")


def _number(value: float | None, num_digits: int) -> str:
    return NOTHING if value is None else f"{value:.{num_digits}f}"


def _percent(rate: float | None) -> str:
    return NOTHING if rate is None else f"{100 * rate:.0f} %"


def _text(figures: SettingFigures) -> str:
    """Whether greedy answers were the target's own."""
    if figures.text_verdict is None:
        return NOTHING
    if figures.text_verdict == "same" or figures.difference is None:
        return "same"
    word = "near-tie" if figures.text_verdict == "near-tie" else "DIFFERENT"
    return f"{word}@{figures.difference.position}"
