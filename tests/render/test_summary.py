from __future__ import annotations

import dataclasses

import pytest

from specgen.core.metrics import Baseline
from specgen.render.summary import format_summary, format_turn
from tests.render.runs import TARGET_MODEL, counts, info, report

EXAMPLE = counts((5, 2), (5, 5), (5, 0), (3, 3))
"""10 of 18 accepted, 2 rejected, 6 discarded, 14 tokens in 4 rounds and 0.12 s."""


def test_figures_of_a_run_are_those_of_its_counts() -> None:
    assert format_summary(report(EXAMPLE), 80).plain.splitlines() == [
        "target   Qwen/Qwen2.5-7B-Instruct nf4 bfloat16 cuda:0 5.0 GiB",
        "draft    Qwen/Qwen2.5-0.5B-Instruct nf4 bfloat16 cuda:0",
        "tokens   14 in 0.12 s   116.7 tok/s   first token 80.0 ms   peak memory 6.0 GiB",
        "TAR      55.6 %   accepted 10 of 18 drafted   rejected 2   discarded 6",
        "rounds   α 83.3 %   3.50 tokens per round   drafting 33.3 % of the time",
        "speedup  2.33x over the target alone (calibrated on 8 tokens)",
    ]


def test_narrow_terminals_get_one_figure_per_line() -> None:
    assert format_summary(report(EXAMPLE), 40).plain.splitlines() == [
        "target Qwen/Qwen2.5-7B-Instruct nf4",
        "bfloat16 cuda:0 5.0 GiB",
        "draft Qwen/Qwen2.5-0.5B-Instruct nf4",
        "bfloat16 cuda:0",
        "tokens 14 in 0.12 s",
        "tok/s 116.7",
        "first token 80.0 ms",
        "peak memory 6.0 GiB",
        "TAR 55.6 %",
        "accepted 10 of 18 drafted",
        "rejected 2",
        "discarded 6",
        "α 83.3 %",
        "tokens per round 3.50",
        "draft share 33.3 % of the time",
        "speedup 2.33x over the target alone",
        "(calibrated on 8 tokens)",
    ]


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


def test_nothing_drafted_has_no_rate() -> None:
    run = report(counts((0, 0), (0, 0)), None, info=info("none", 0))

    text = format_summary(run, 80).plain

    assert "TAR      n/a, nothing was drafted" in text
    assert "0.0 %" not in text
    assert "draft    none, plain decoding" in text
    assert "speedup  not measured: this is the target alone" in text


def test_a_draft_model_that_never_drafted_is_told() -> None:
    assert "TAR      n/a" in format_summary(report(counts((0, 0))), 80).plain


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("stop", "the target alone was not timed"),
        ("interrupted", "the run ended early (interrupted)"),
        ("memory", "the run ended early (out of memory)"),
    ],
)
def test_a_missing_baseline_says_why(reason: str, why: str) -> None:
    text = format_summary(report(EXAMPLE, None, finish_reason=reason), 120).plain

    assert f"speedup  not measured: {why}" in text


def test_a_run_without_tokens_has_no_figures_to_divide() -> None:
    text = format_summary(report(counts(), finish_reason="interrupted"), 80).plain

    assert "tokens   0 in 0.0 ms" in text
    assert "not measured: no token was generated" in text
    assert "tok/s" not in text


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (Baseline("calibrate", 8, 0.02), "(calibrated on 8 tokens)"),
        (Baseline("full", 14, 0.02), "(timed on a whole answer of 14 tokens)"),
        (Baseline("full", 14, 0.02, None, True), "(timed on a whole answer of 14 tokens, the same ones)"),
        (Baseline("full", 14, 0.02, 7, True), "(timed on a whole answer of 14 tokens, which differs from token 7 on)"),
    ],
)
def test_the_way_the_baseline_was_measured_is_named(baseline: Baseline, words: str) -> None:
    assert words in format_summary(report(EXAMPLE, baseline=baseline), 120).plain


def test_a_slower_run_of_few_tokens_blames_nothing() -> None:
    few = report(counts((5, 5), (5, 4)), 0.002)

    text = " ".join(format_summary(few, 80).plain.split())

    assert "slower than the target alone (calibrated on 8 tokens): too few tokens (11) to tell why" in text
    assert "--draft none" not in text


@pytest.mark.fault("F47")
def test_a_slower_run_says_so_with_a_reason_and_something_to_try() -> None:
    text = " ".join(format_summary(report(EXAMPLE, 0.002), 80).plain.split())

    assert "0.23x, slower than the target alone (calibrated on 8 tokens). Why: " in text
    assert "Try -k 2 or --draft none." in text


def test_the_end_is_told_if_the_model_did_not_choose_it() -> None:
    limit = format_summary(report(EXAMPLE, finish_reason="length"), 80).plain
    stop = format_summary(report(EXAMPLE, stop_text="\x1b\n"), 80).plain

    assert "ended    at the limit of 256 new tokens" in limit
    assert r"ended    at stop text '\x1b\n'" in stop
    assert "ended" not in format_summary(report(EXAMPLE), 80).plain


def test_names_from_outside_are_safe() -> None:
    hostile = dataclasses.replace(TARGET_MODEL, name="evil\x1b]0;x\x07\nname\u202e", remark="[/bold]")
    run = report(EXAMPLE, info=dataclasses.replace(info(), target=hostile))

    first = format_summary(run, 120).plain.splitlines()[0]

    assert first.startswith("target   evil␛]0;x␇ name<U+202E> nf4")
    assert first.endswith("([/bold])")


def test_ascii_terminals_get_ascii() -> None:
    assert format_summary(report(EXAMPLE), 80, ascii_only=True).plain.isascii()
    assert format_turn(report(EXAMPLE), ascii_only=True).plain.isascii()


def test_a_turn_is_one_line() -> None:
    assert format_turn(report(EXAMPLE)).plain == "56 % of 18 accepted · 2.33x · 116.7 tok/s · 14 tok"
    assert format_turn(report(counts((0, 0)), None)).plain == "nothing drafted · 33.3 tok/s · 1 tok"
    assert (
        format_turn(report(counts(), None, finish_reason="interrupted")).plain
        == "nothing drafted · 0 tok · interrupted"
    )
