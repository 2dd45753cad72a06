from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.events import FinalText, Finish, TextEvent
from specgen.render.sanitize import sanitize
from specgen.render.terminal import make_console
from specgen.render.views import StepsView
from tests.profiles import num_examples
from tests.render.screens import (
    ACCEPTED,
    BONUS,
    CORRECTION,
    DISCARDED,
    EXAMPLE,
    REJECTED,
    TARGET,
    final,
    generations,
    pipe_console,
    round_text,
    show_all,
    terminal_console,
    written,
)


def _lines(*events: TextEvent) -> list[str]:
    console = pipe_console()
    show_all(StepsView(console, sanitize), events)
    return written(console).splitlines()


def test_a_round_is_one_line_with_its_counts_time_and_tokens() -> None:
    assert _lines(EXAMPLE) == ["#0     2/5   31 ms  ␣The ␣quick | -␣dog -␣and -␣cat | +␣fox"]


def test_empty_sections_are_omitted() -> None:
    assert _lines(
        round_text(("a", ACCEPTED), ("b", ACCEPTED)),
        round_text(("c", ACCEPTED), ("d", BONUS), index=1),
        round_text(("e", TARGET), index=2),
        round_text(("x", REJECTED), ("f", CORRECTION), index=3),
    ) == [
        "#0     2/2   31 ms  a b",
        "#1     1/1   31 ms  c | +d",
        "#2     0/0   31 ms  +e",
        "#3     0/1   31 ms  -x | +f",
    ]


def test_columns_stay_aligned_as_numbers_grow() -> None:
    first, last = _lines(
        round_text(("a", TARGET), seconds=0.0104),
        round_text(*[("a", ACCEPTED)] * 12, *[("b", DISCARDED)] * 4, ("c", CORRECTION), index=1234, seconds=1.234),
    )

    assert first.index("+a") == last.index("a a")


def test_white_space_and_missing_text_are_visible() -> None:
    assert _lines(round_text(("  a\n", ACCEPTED), ("\t", REJECTED), ("", DISCARDED), ("\n", CORRECTION))) == [
        "#0     1/3   31 ms  ␣␣a⏎ | -⇥ -· | +⏎"
    ]


def test_the_last_line_has_the_reason_and_the_remaining_text() -> None:
    assert _lines(FinalText(" …", Finish("length"))) == ["end  length  ␣…"]


@given(generations(st.text("ab \n\r\x1b\u2028é", max_size=5)))
@settings(max_examples=num_examples(40))
def test_there_are_as_many_lines_as_rounds_and_one_for_the_end(events: list[TextEvent]) -> None:
    assert len(_lines(*events)) == len(events)


def test_long_rounds_are_not_cut() -> None:
    (line,) = _lines(round_text(*[("word", ACCEPTED)] * 64))

    assert line.count("word") == 64


def test_states_are_styled_on_a_terminal() -> None:
    console = terminal_console()

    show_all(StepsView(console, sanitize), [EXAMPLE])

    assert "\x1b[2;9;35m-␣dog\x1b[0m \x1b[2m-␣and\x1b[0m" in written(console)
    assert "\x1b[4m+␣fox\x1b[0m" in written(console)


@pytest.mark.parametrize("seconds", [0.0004, 0.00994, 0.00996, 0.2])
def test_short_times_keep_a_digit(seconds: float) -> None:
    (line,) = _lines(round_text(("a", TARGET), seconds=seconds))

    (shown,) = re.findall(r"([\d.]+) ms", line)
    assert float(shown) == pytest.approx(seconds * 1000, abs=0.06)


def test_ascii_terminals_get_ascii_symbols() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")

    show_all(StepsView(make_console(stream, "never", {}), sanitize), [EXAMPLE, final("\n")])

    assert b"_The _quick | -_dog" in raw.getvalue()
