"""Formats a ranking of drafts, as lines for people or as a JSON document."""

from __future__ import annotations

from dataclasses import asdict

from rich.text import Text

from specgen.core.units import format_size
from specgen.doctor.draft_forecast import DraftForecast, DraftRanking, Prediction
from specgen.render.formatting import format_rate, labelled
from specgen.render.jsonl import SCHEMA_VERSION, Document
from specgen.render.sanitize import one_line
from specgen.render.theme import glyphs

NUM_COMMANDS = 3
"""Drafts whose `bench` command is printed."""


def format_ranking(ranking: DraftRanking, *, ascii_only: bool = False) -> Text:
    """Formats a block for each draft, the most promising first, then the commands that measure the first ones."""
    lines = [("target", f"{ranking.target}: {_target_speed(ranking)}")]
    for number, draft in enumerate(ranking.drafts, 1):
        lines.append((str(number), draft.draft))
        lines += [("", line) for line in _describe(draft, glyphs(ascii_only=ascii_only).alpha)]
    lines += [("unusable", f"{one.draft}: {one.reason}") for one in ranking.unusable]
    lines += [("note", notice) for notice in ranking.notices]
    commands = [draft.command for draft in ranking.drafts if draft.fits is not False and draft.speedup.value > 1]
    lines += [("" if index else "measure", command) for index, command in enumerate(commands[:NUM_COMMANDS])]
    if not commands:
        lines.append(("measure", "no draft is predicted to pay: use -d none, or -k auto, which loses little"))
    return Text("\n").join(labelled(label, one_line(words, ascii_only=ascii_only)) for label, words in lines)


def _target_speed(ranking: DraftRanking) -> str:
    if not ranking.target_seconds:
        return "its speed is unknown"
    return f"{1 / ranking.target_seconds:.1f} tok/s alone ({ranking.target_basis})"


def _describe(draft: DraftForecast, alpha: str) -> list[str]:
    acceptance = f"{alpha} {format_rate(draft.alpha, num_digits=0)} ({draft.alpha_basis})"
    if not draft.num_bytes:
        return [_prediction(draft), acceptance]
    fits = {True: "fits in memory", False: "does not fit in memory", None: "unknown whether it fits"}[draft.fits]
    return [
        _prediction(draft),
        f"{acceptance}, a token costs {draft.relative_cost:.2f} of the target's ({draft.cost_basis})",
        f"{draft.source}, {format_size(draft.num_bytes)}, {fits}",
        draft.vocabulary,
    ]


def _prediction(draft: DraftForecast) -> str:
    speedup, rate = draft.speedup, draft.tokens_per_second
    if not draft.num_draft_tokens:
        return f"not predicted to pay: {_range(speedup, 'x', 2)}"
    per_second = "" if rate is None else f", {_range(rate, ' tok/s', 1)}"
    return f"predicted {_range(speedup, 'x', 2)}{per_second}, with -k {draft.num_draft_tokens}"


def _range(value: Prediction, unit: str, num_digits: int) -> str:
    return f"{value.value:.{num_digits}f}{unit} ({value.low:.{num_digits}f} to {value.high:.{num_digits}f})"


def ranking_document(ranking: DraftRanking) -> Document:
    """Returns everything as one document."""
    return {"type": "drafts", "schema_version": SCHEMA_VERSION, **asdict(ranking)}
