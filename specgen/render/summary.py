"""Formats the figures of a finished run for people."""

from __future__ import annotations

import re
from typing import NamedTuple

from rich.text import Text

from specgen.core.baseline import Baseline
from specgen.core.doubt import find_doubt
from specgen.core.metrics import Counts, Detail
from specgen.core.results import RunReport
from specgen.core.units import format_size
from specgen.render.diagnosis import explain_causes, explain_doubt, find_causes, find_remedies
from specgen.render.formatting import (
    LABEL_CELLS,
    format_drafter,
    format_duration,
    format_guarantee,
    format_model,
    format_rate,
    format_speedup,
    labelled,
    wrap_words,
)
from specgen.render.sanitize import one_line
from specgen.render.served import served_sources, served_speedup
from specgen.render.theme import glyphs

NARROW = 60
"""Below this many columns, one figure per line."""

_GLUE = "\u00a0"
"""No-break space, which becomes a space again after wrapping."""
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|[GM]iB|m?s\b)")
ABOUT_ONE = 0.97
"""From here to 1 the timing of a few tokens is too coarse for a claim or advice."""
FEW_TOKENS = 12
"""In a shorter answer the cost of the first draft outweighs any gain."""


class _Figure(NamedTuple):
    """A figure: its key and value on a line of its own, and its phrase among others."""

    key: str
    value: str
    phrase: str


_Row = tuple[str, list[_Figure] | str]
"""The label of a line of the block, and its figures or words."""


def _keyed(key: str, value: str) -> _Figure:
    return _Figure(key, value, f"{key} {value}")


def format_summary(report: RunReport, width: int, *, ascii_only: bool = False) -> Text:
    """Formats a block of figures, or `key value` lines below 60 columns. Names longer than a line are not cut."""
    rows = _rows(report, ascii_only)
    if width < NARROW:
        return Text("\n").join(line for row in rows for line in _narrow_lines(row, width))
    return Text("\n").join(_wide_line(row, width) for row in rows)


def format_turn(report: RunReport, *, ascii_only: bool = False) -> Text:
    """Formats the line after a reply in a chat: `71 % of 225 accepted · 1.62x · 62.2 tok/s · 212 tok`."""
    counts = report.counts
    drafts = "drafts unknown" if counts.detail is Detail.NOTHING else "nothing drafted"
    if (rate := counts.acceptance_rate) is not None:
        drafts = f"{format_rate(rate, num_digits=0)} of {counts.num_drafted} accepted"
    is_reused = counts.is_served and counts.num_reused_tokens
    figures = [
        drafts,
        "" if report.speedup is None or find_doubt(report) else format_speedup(report.speedup),
        "" if counts.tokens_per_second is None else f"{counts.tokens_per_second:.1f} tok/s",
        f"{counts.num_emitted} tok",
        f"warm-up {format_duration(counts.warmup_seconds)}" if counts.num_warmup_rounds else "",
        f"{counts.num_reused_tokens} of {counts.num_prompt_tokens} cached" if is_reused else "",
        "" if report.finish_reason == "stop" else _ending(report),
    ]
    separator = f" {glyphs(ascii_only=ascii_only).separator} "
    return Text().append(separator.join(filter(None, figures)), "muted")


def _rows(report: RunReport, ascii_only: bool) -> list[_Row]:
    rows: list[_Row] = [
        ("target", format_model(report.info.target, ascii_only=ascii_only)),
        ("draft", format_drafter(report.info.draft, report.info.drafter, ascii_only=ascii_only)),
        ("tokens", _token_figures(report)),
    ]
    if report.finish_reason != "stop" or report.stop_text:
        rows.append(("ended", _ending(report, ascii_only=ascii_only)))
    if report.counts.num_drafted:
        rows.append(("TAR", _acceptance_figures(report.counts)))
        rows += [("rounds", rounds)] if (rounds := _round_figures(report, ascii_only)) else []
    elif report.counts.detail is Detail.NOTHING:
        rows.append(("TAR", "n/a, the server sends no counts of drafts"))
    else:
        rows.append(("TAR", "n/a, nothing was drafted"))
    if report.info.guarantee in ("none", "unchecked"):
        rows.append(("output", format_guarantee(report.info)))
    rows.append(("speedup", _speedup(report) if report.served is None else served_speedup(report, report.served)))
    if report.served is not None:
        rows.append(("source", served_sources(report, report.served)))
    return rows


def _token_figures(report: RunReport) -> list[_Figure]:
    counts = report.counts
    tokens = f"{counts.num_emitted} in {format_duration(counts.decode_seconds)}"
    if counts.is_served and not counts.num_emitted:  # it sends no usage
        tokens = "n/a"
    figures = [_Figure("tokens", tokens, tokens)]
    if counts.tokens_per_second is not None:
        rate = f"{counts.tokens_per_second:.1f}"
        figures.append(_Figure("tok/s", rate, f"{rate} tok/s"))
    if counts.num_warmup_rounds:
        what = "all rounds" if counts.is_all_warmup else "not in the speed"
        figures.append(_keyed("warm-up", f"{format_duration(counts.warmup_seconds)}, {what}"))
    if counts.ttft_seconds is not None:
        figures.append(_keyed("first token", format_duration(counts.ttft_seconds)))
    if report.peak_memory_bytes > 0:
        figures.append(_keyed("peak memory", format_size(report.peak_memory_bytes)))
    return figures


def _acceptance_figures(counts: Counts) -> list[_Figure]:
    rate = format_rate(counts.acceptance_rate)
    figures = [
        _Figure("TAR", rate, rate),
        _keyed("accepted", f"{counts.num_accepted} of {counts.num_drafted} drafted"),
    ]
    if counts.detail is not Detail.ALL:
        return figures
    return [*figures, _keyed("rejected", str(counts.num_rejected)), _keyed("discarded", str(counts.num_discarded))]


def _round_figures(report: RunReport, ascii_only: bool) -> list[_Figure]:
    counts = report.counts
    is_known = counts.alpha is not None or counts.detail is Detail.ALL
    figures = [_keyed(glyphs(ascii_only=ascii_only).alpha, format_rate(counts.alpha))] if is_known else []
    if counts.block_efficiency is not None:
        tokens = f"{counts.block_efficiency:.2f}"
        # A server counts the rounds that drafted.
        key = "tokens per drafted round" if counts.is_served else "tokens per round"
        figures.append(_Figure(key, tokens, f"{tokens} {key}"))
    if counts.nodes_per_tree is not None:
        figures.append(_keyed("nodes per tree", f"{counts.nodes_per_tree:.1f}"))
    if report.info.drafter == "model+lookup" and counts.num_lookup_drafted:
        accepted = f"{counts.num_lookup_accepted} of {counts.num_lookup_drafted}"
        figures.append(_Figure("accepted from lookup", accepted, f"from lookup {accepted}"))
    if counts.draft_share is not None:
        share = f"{format_rate(counts.draft_share)} of the time"
        figures.append(_Figure("draft share", share, f"drafting {share}"))
    return figures


def _speedup(report: RunReport) -> str:
    speedup, baseline = report.speedup, report.baseline
    if not speedup or baseline is None:
        return f"not measured: {_why_not_measured(report)}"
    method, figure = _method(baseline), format_speedup(speedup)
    if report.forecast is not None and report.forecast.speedup is not None:
        method += f"; predicted from the costs of passes: {format_speedup(report.forecast.speedup)}"
    if ABOUT_ONE <= speedup < 1:
        return f"{figure}, about as fast as the target alone ({method})"
    if doubt := find_doubt(report):
        return f"{figure} over the target alone ({method}): {explain_doubt(doubt, report)}"
    if speedup >= 1:
        return f"{figure} over the target alone ({method})"
    slower = f"{figure}, slower than the target alone ({method})"
    causes = find_causes(report)
    if not causes:
        return slower
    if report.counts.num_emitted < FEW_TOKENS:
        return f"{slower}: too few tokens ({report.counts.num_emitted}) to find the cause"
    remedies = find_remedies(report)
    advice = f" Try {_alternatives(remedies)}." if remedies else ""
    return f"{slower}. Cause: {explain_causes(causes, report)}.{advice}"


def _alternatives(options: tuple[str, ...]) -> str:
    """Returns `a`, `a or b`, or `a, b, or c`."""
    return " or ".join(options) if len(options) < 3 else f"{', '.join(options[:-1])}, or {options[-1]}"


def _why_not_measured(report: RunReport) -> str:
    if not report.counts.num_emitted:
        return "no token was generated"
    if report.info.drafter == "none":
        return "--draft none is the baseline itself"
    if report.finish_reason not in ("stop", "length"):
        return f"the run ended early ({_ending(report)})"
    return "the target alone was not timed; use --baseline calibrate or full"


def _method(baseline: Baseline) -> str:
    if baseline.method == "calibrate":
        return f"calibrated on {baseline.num_tokens} tokens"
    text = f"timed on a full answer of {baseline.num_tokens} tokens"
    if not baseline.compared:
        return text
    if baseline.first_difference is None:
        return f"{text}, with the same text"
    return f"{text}, whose text differs from token {baseline.first_difference} on"


def _ending(report: RunReport, *, ascii_only: bool = False) -> str:
    match report.finish_reason:
        case "stop":
            text = one_line(repr(report.stop_text), ascii_only=ascii_only)
            return f"at stop text {text}" if report.stop_text else "by itself"
        case "length":
            return f"at the limit of {report.info.max_new_tokens} new tokens"
        case "interrupted":
            return "interrupted"
        case "numerical":
            return "the target's logits became NaN or infinite"
        case "memory":
            return "out of memory"
        case "error":
            return "after an error"


def _wide_line(row: _Row, width: int) -> Text:
    label, value = row
    words = value if isinstance(value, str) else "   ".join(_glued(figure.phrase) for figure in value)
    return labelled(label, f"\n{'':{LABEL_CELLS}}".join(_wrap(words, width - LABEL_CELLS)))


def _narrow_lines(row: _Row, width: int) -> list[Text]:
    label, value = row
    lines = []
    for key, words in [(label, value)] if isinstance(value, str) else [figure[:2] for figure in value]:
        first, *rest = _wrap(f"{_glued(key)} {words}", width)
        text = Text().append(first[: len(key)], "label").append(first[len(key) :])
        lines.append(text.append("".join(f"\n{line}" for line in rest)))
    return lines


def _glued(text: str) -> str:
    return text.replace(" ", _GLUE)


def _wrap(text: str, width: int) -> list[str]:
    text = _BEFORE_UNIT.sub(_GLUE, text)
    return [line.plain.replace(_GLUE, " ") for line in wrap_words(Text(text), width)]
