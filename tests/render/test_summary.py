from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from specgen.core.baseline import Baseline
from specgen.core.cost_model import Forecast
from specgen.core.results import RunReport
from specgen.render.diagnosis import explain_causes, find_causes
from specgen.render.summary import format_summary, format_turn
from tests.render.runs import TARGET_MODEL, counts, info, report, warmed_up
from tests.snapshots import check_snapshot

EXAMPLE = counts((5, 2), (5, 5), (5, 0), (3, 3))
"""10 of 18 accepted, 2 rejected, 6 discarded, 14 tokens in 4 rounds and 0.12 s."""


SNAPSHOTS = Path(__file__).parent / "snapshots"


RUNS = {
    "drafted": report(EXAMPLE),
    "none": report(counts((0, 0), (0, 0)), None, info=info("none", 0)),
    "not-timed": report(EXAMPLE, None),
    "interrupted": report(EXAMPLE, None, finish_reason="interrupted"),
    "no-tokens": report(counts(), finish_reason="interrupted"),
    "limit": report(EXAMPLE, finish_reason="length"),
    "stop-text": report(EXAMPLE, stop_text="\x1b\n"),
    "full": report(EXAMPLE, baseline=Baseline("full", 14, 0.02)),
    "full-same": report(EXAMPLE, baseline=Baseline("full", 14, 0.02, None, True)),
    "full-different": report(EXAMPLE, baseline=Baseline("full", 14, 0.02, 7, True)),
    "predicted": report(EXAMPLE, forecast=Forecast(2.0, {})),
    "equal": report(EXAMPLE, 0.0084),
    "slower": report(EXAMPLE, 0.002),
    "slower-few-tokens": report(counts((5, 5), (5, 4)), 0.002),
    "nothing-drafted": report(counts((0, 0), (0, 0)), 0.05),
    "impossible": report(counts((5, 5), (5, 1)), 1.0),
    "warm-up": report(warmed_up(counts((5, 2), (5, 5), (5, 0), (3, 3)))),
    "warm-up-only": report(warmed_up(counts())),
}


def test_the_summary_reads_as_stored() -> None:
    blocks = [f"# {name}\n{format_summary(run, 80).plain}\n" for name, run in RUNS.items()]

    check_snapshot(SNAPSHOTS / "summary.txt", "\n".join(blocks))


def test_narrow_terminals_get_one_figure_per_line() -> None:
    check_snapshot(SNAPSHOTS / "summary-narrow.txt", format_summary(report(EXAMPLE), 40).plain)


@pytest.mark.parametrize("width", [40, 59, 60, 80, 120])
@pytest.mark.parametrize("tpot_seconds", [0.02, 0.001, None])
def test_lines_fit_the_width(width: int, tpot_seconds: float | None) -> None:
    lines = format_summary(report(EXAMPLE, tpot_seconds, finish_reason="length"), width).plain.splitlines()

    assert max(map(len, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [0, 1, 5, 10])
def test_the_smallest_terminals_lose_no_figure(width: int) -> None:
    words = format_summary(report(EXAMPLE), width).plain.split()

    assert {"2.33x", "116.7", "55.6", "rejected"} <= set(words)


@pytest.mark.parametrize("run", [report(counts((0, 0))), report(counts((0, 0)), None, info=info("none", 0))])
def test_without_drafts_there_is_no_rate(run: RunReport) -> None:
    text = format_summary(run, 80).plain

    assert "n/a" in text
    assert "0.0 %" not in text


def test_a_run_without_tokens_has_no_figures_to_divide() -> None:
    text = format_summary(report(counts(), finish_reason="interrupted"), 80).plain

    assert "tok/s" not in text
    assert "nan" not in text.lower()


def test_a_slower_run_of_few_tokens_gets_no_advice() -> None:
    few = report(counts((5, 5), (5, 4)), 0.002)

    assert "--draft none" not in format_summary(few, 80).plain


@pytest.mark.fault("F47")
def test_a_slower_run_is_reported_with_a_cause_and_something_to_try() -> None:
    run = report(EXAMPLE, 0.002)

    text = " ".join(format_summary(run, 80).plain.split())

    assert "0.23x" in text
    assert explain_causes(find_causes(run), run) in text
    assert all(remedy in text for remedy in ("-k 2", "--draft none"))


@pytest.mark.parametrize(
    ("changes", "value"),
    [({}, None), ({"finish_reason": "length"}, "256"), ({"stop_text": "\x1b\n"}, r"'\x1b\n'")],
)
def test_the_end_is_reported_unless_the_model_chose_it(changes: dict[str, Any], value: str | None) -> None:
    ended = [line for line in format_summary(report(EXAMPLE, **changes), 80).plain.splitlines() if "ended" in line]

    assert [value in line for line in ended if value] == [True] * (value is not None)


def test_names_from_outside_are_safe() -> None:
    hostile = dataclasses.replace(TARGET_MODEL, name="evil\x1b]0;x\x07\nname\u202e", remark="[/bold]")
    run = report(EXAMPLE, info=dataclasses.replace(info(), target=hostile))

    first = format_summary(run, 120).plain.splitlines()[0]

    assert first.startswith("target   evil␛]0;x␇ name<U+202E> nf4")
    assert first.endswith("([/bold])")


def test_ascii_terminals_get_ascii() -> None:
    assert format_summary(report(EXAMPLE), 80, ascii_only=True).plain.isascii()
    assert format_turn(report(EXAMPLE), ascii_only=True).plain.isascii()


def test_the_line_after_a_reply_reads_as_stored() -> None:
    runs = (
        report(EXAMPLE),
        report(counts((0, 0)), None),
        report(counts(), None, finish_reason="interrupted"),
        report(warmed_up(counts((5, 2)))),
    )

    check_snapshot(SNAPSHOTS / "turns.txt", "\n".join(format_turn(run).plain for run in runs))
