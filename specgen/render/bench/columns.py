"""Formats the figures of a benchmark as columns, which the table, Markdown and the chart share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from specgen.bench.figures import SettingFigures
from specgen.bench.results import BenchReport
from specgen.core.units import format_size
from specgen.render.formatting import (
    format_count,
    format_drafter,
    format_duration,
    format_model,
    format_rate,
    format_speedup,
    sampling_words,
)
from specgen.render.sanitize import one_line
from specgen.render.text_width import cut_to_cells
from specgen.render.theme import Glyphs, glyphs

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, one value per row, and whether they are aligned to the left."""

    head: str
    values: tuple[str, ...]
    is_left: bool = False

    @property
    def width(self) -> int:
        """Terminal cells of the widest of heading and values."""
        return max(cell_len(text) for text in (self.head, *self.values))

    def padded(self, row: int | None) -> str:
        """Returns a value padded to the column's width; the heading for None."""
        text = self.head if row is None else self.values[row]
        space = " " * (self.width - cell_len(text))
        return text + space if self.is_left else space + text


def method_lines(report: BenchReport, *, ascii_only: bool) -> list[str]:
    """Returns what was measured and how."""
    config = report.config
    prompts, repeats = (
        format_count(len({getattr(run, name) for run in report.runs}), name) for name in ("prompt", "repeat")
    )
    sampling = config.sampling
    how = [*sampling_words(sampling), *["same text"] * (sampling.same_text and not sampling.is_greedy)]
    targets = [report.target, *([report.other_target] if report.other_target else [])]
    drafters = {setting.label: setting.drafter for setting in report.settings if setting.has_drafter}
    drafts = [
        f"draft  {format_drafter(report.drafts.get(label), drafter, ascii_only=ascii_only)}"
        for label, drafter in drafters.items()
    ]
    return [
        *(f"target {format_model(target, ascii_only=ascii_only)}" for target in targets),
        *dict.fromkeys(drafts),
        f"{config.num_tokens} tokens x {prompts} x {repeats}, {', '.join(how)}",
    ]


def name_columns(figures: Sequence[SettingFigures], num_cells: int | None, *, ascii_only: bool) -> list[Column]:
    """Returns the first columns of every part of a table: draft, draft length, and what else distinguishes settings.

    Names are cut to `num_cells`, if given.
    """
    names = [one_line(item.setting.label, ascii_only=ascii_only) for item in figures]
    if num_cells is not None:
        names = [shorten(name, num_cells, glyphs(ascii_only=ascii_only).cut) for name in names]
    lengths = [NOTHING if item.setting.drafter == "none" else item.setting.length for item in figures]
    backends = tuple(item.setting.backend for item in figures)
    concurrencies = [item.setting.concurrency for item in figures]
    trees = [NOTHING if item.setting.drafter == "none" else item.setting.tree for item in figures]
    return [
        *([Column("backend", backends, is_left=True)] if any(backends) else []),
        Column("draft", tuple(names), is_left=True),
        Column("k", tuple(lengths)),
        *([Column("tree", tuple(trees))] if any(item.setting.num_tree_nodes for item in figures) else []),
        *([Column("concurrency", tuple(map(str, concurrencies)))] if max(concurrencies) > 1 else []),
    ]


def shorten(name: str, num_cells: int, cut: str) -> str:
    """Cuts a name in its middle and keeps its end, where the weight format or lookup distinguishes two drafts."""
    if cell_len(name) <= num_cells:
        return name
    last_word = name[last:] if (last := max(name.rfind(" "), name.rfind("+"))) >= 0 else ""
    tail = last_word if 0 < cell_len(last_word) <= num_cells // 2 else name[-(num_cells // 3) :]
    return cut_to_cells(name, num_cells - cell_len(tail), cut) + tail


def figure_columns(figures: Sequence[SettingFigures], best: int | None, symbols: Glyphs) -> list[Column]:
    """Returns all figures, the most important first; the setting of index `best` is marked."""

    def column(head: str, words: Callable[[SettingFigures], str | None]) -> Column:
        return Column(head, tuple(words(item) or NOTHING for item in figures))

    branches = any(item.setting.num_tree_nodes for item in figures)
    is_concurrent = any(item.setting.concurrency > 1 for item in figures)
    return [
        column("tok/s", lambda f: _optional(f.counts.tokens_per_second, "{:.1f}".format)),
        column("speedup", lambda f: speedup_cell(f, symbols) + (" best" if f.index == best else "")),
        column("TAR", lambda f: percent(f.counts.acceptance_rate)),
        column("tok/round", lambda f: _optional(f.counts.block_efficiency, "{:.2f}".format)),
        *([column("nodes", lambda f: _optional(f.counts.nodes_per_tree, "{:.1f}".format))] if branches else []),
        column("text", _text),
        column(symbols.alpha, lambda f: percent(f.counts.alpha)),
        column("predicted", lambda f: _optional(f.predicted_speedup, format_speedup)),
        column("drafting", lambda f: percent(f.counts.draft_share) if f.setting.has_drafter else None),
        column("TTFT", lambda f: _optional(f.ttft_seconds, format_duration)),
        *([column("throughput", lambda f: _optional(f.output_throughput, "{:.1f}".format))] if is_concurrent else []),
        column("memory", lambda f: _optional(f.peak_memory_bytes, format_size)),
    ]


def speedup_cell(figures: SettingFigures, symbols: Glyphs) -> str:
    """Returns `1.62x ±0.02`, with half of the 95 % interval if there is one; `±?` if that half exceeds the speedup."""
    if figures.speedup is None:
        return "1.00x" if figures.setting.drafter == "none" else NOTHING
    if figures.interval is None:
        return format_speedup(figures.speedup)
    half = figures.interval.half_width
    # The interval of two repeats that disagree may have any size; its digits are meaningless.
    error = f"{half:.2f}" if half < figures.speedup else "?"
    return f"{format_speedup(figures.speedup)} {symbols.plus_minus}{error}"


def percent(rate: float | None) -> str:
    """Returns a fraction in whole percent; `-` for None."""
    return format_rate(rate, num_digits=0, missing=NOTHING)


def _optional(value: float | None, words: Callable[[float], str]) -> str | None:
    return None if value is None else words(value)


def _text(figures: SettingFigures) -> str | None:
    """Returns whether greedy answers are the baseline's."""
    if figures.difference is None:
        return figures.text_verdict
    words = "near-tie" if figures.text_verdict == "near-tie" else "DIFFERENT"
    doubt = "?" if math.isnan(figures.difference.gap.distance) else ""
    return f"{words}{doubt}@{figures.difference.position}"
