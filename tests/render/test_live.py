from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.events import Notice, Prefill, TextEvent
from specgen.render.live import LiveView
from specgen.render.sanitize import sanitize
from tests.profiles import num_examples, thorough_except
from tests.render.screens import (
    ACCEPTED,
    BONUS,
    CORRECTION,
    DISCARDED,
    EXAMPLE,
    REJECTED,
    answer,
    final,
    generations,
    pipe_console,
    render_screen,
    round_text,
    scrollback,
    show_all,
    terminal_console,
    written,
)

TEXTS = {
    "ascii": st.text("abcdefgh   .\n\t", max_size=9),
    "cjk": st.text("日本語한국어、。 a\n", max_size=7),
    "emoji": st.lists(
        st.sampled_from(["🙂", "☺", "é", "e\u0301", "日", "a", " ", "b", "×", "☺\ufe0f", "…", "क्", "\n"]), max_size=6
    ).map("".join),
}


def _shown(events: list[TextEvent], columns: int) -> str:
    console = terminal_console(columns=columns)
    show_all(LiveView(console, sanitize), events)
    return written(console)


def _streamed(events: list[TextEvent]) -> str:
    text = answer(events)
    return text if text.endswith("\n") or not text else text + "\n"


@pytest.mark.parametrize("columns", thorough_except([20], [20, 80]))
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.fast("cjk-20")
def test_scrollback_equals_plain_streaming(kind: str, columns: int) -> None:
    @given(generations(TEXTS[kind], max_rounds=40))
    @settings(max_examples=num_examples(40))
    def check(events: list[TextEvent]) -> None:
        screen = render_screen(_shown(events, columns), columns)
        plain = render_screen(_streamed(events), columns)
        assert scrollback(screen) == scrollback(plain)
        assert (screen.cursor.x, screen.cursor.y) == (plain.cursor.x, plain.cursor.y)

    check()


@given(generations(st.one_of(*TEXTS.values())), st.integers(1, 25))
@settings(max_examples=num_examples(40))
@pytest.mark.fault("F74")
def test_text_is_whole_at_any_width(events: list[TextEvent], columns: int) -> None:
    screen = render_screen(_shown(events, columns), columns)

    assert scrollback(screen) == scrollback(render_screen(_streamed(events), columns))


@given(generations(st.text("abc ", min_size=1, max_size=5), max_rounds=60))
@settings(max_examples=num_examples(15))
def test_every_moment_shows_the_text_so_far(events: list[TextEvent]) -> None:
    console = terminal_console(columns=20)
    view = LiveView(console, sanitize)
    for number, event in enumerate(events, start=1):
        view.show(event)
        shown = "\n".join(scrollback(render_screen(written(console), 20)))
        so_far = "\n".join(scrollback(render_screen(answer(events[:number]), 20)))
        assert shown.startswith(so_far)


def test_the_rejected_draft_is_shown_after_the_text_until_the_next_event() -> None:
    console = terminal_console(columns=40)
    view = LiveView(console, sanitize)

    view.show(EXAMPLE)
    assert scrollback(render_screen(written(console), 40)) == [" The quick fox dog and cat"]

    view.show(round_text((" jumps", BONUS)))
    assert scrollback(render_screen(written(console), 40)) == [" The quick fox jumps"]


def test_the_tail_is_dim_italic_and_inside_one_row() -> None:
    console = terminal_console(columns=20)

    LiveView(console, sanitize).show(
        round_text(("ten  chars", ACCEPTED), (" and much", REJECTED), (" more", DISCARDED), ("!", CORRECTION))
    )

    assert "\x1b7\x1b[?7l\x1b[2;3m and muc…\x1b[0m\x1b[?7h" in written(console)


def test_a_newline_in_the_tail_is_a_symbol() -> None:
    console = terminal_console()

    LiveView(console, sanitize).show(round_text(("a\n\tb", REJECTED), ("", DISCARDED), ("x", CORRECTION)))

    assert "a⏎ b·" in written(console)


def test_closing_erases_the_tail() -> None:
    assert scrollback(render_screen(_shown([EXAMPLE], 40), 40)) == [" The quick fox"]


def test_a_notice_erases_the_tail() -> None:
    console = terminal_console(columns=40)
    view = LiveView(console, sanitize)

    view.show(EXAMPLE)
    view.show(Notice("draft_failed", "the draft model failed"))
    view.show(EXAMPLE)

    assert written(console).count("\x1b7") == 1
    assert scrollback(render_screen(written(console), 40)) == [" The quick fox The quick fox"]


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"FORCE_COLOR": "0"}])
def test_a_terminal_without_styles_gets_the_kept_text_only(environ: dict[str, str]) -> None:
    console = terminal_console(**environ)

    show_all(LiveView(console, sanitize), [EXAMPLE])

    assert written(console) == " The quick fox\n"


def test_a_pipe_with_colours_gets_no_tail() -> None:
    console = pipe_console("always")

    show_all(LiveView(console, sanitize), [EXAMPLE])

    assert "\x1b7" not in written(console)


@pytest.mark.parametrize("columns", range(1, 20))
def test_a_narrow_terminal_gets_no_tail(columns: int) -> None:
    assert "\x1b7" not in _shown([EXAMPLE], columns)


def test_no_tail_is_drawn_after_a_character_of_uncertain_width_until_the_line_ends() -> None:
    console = terminal_console()
    view = LiveView(console, sanitize)

    view.show(round_text(("🙂", ACCEPTED), ("no", REJECTED), ("a", CORRECTION)))
    assert "\x1b7" not in written(console)

    view.show(round_text(("\n", ACCEPTED), ("no", REJECTED), ("a", CORRECTION)))
    assert "\x1b7" in written(console)


def test_a_row_that_ends_in_a_wide_character_keeps_it() -> None:
    events = [round_text(("x" * 19, ACCEPTED), ("no", REJECTED), ("日", CORRECTION)), round_text(("本", BONUS))]

    assert scrollback(render_screen(_shown(events, 20), 20)) == scrollback(render_screen(_streamed(events), 20))


@pytest.mark.parametrize("joining", ["\u0301", "\u200d", "\ufe0f"])
def test_a_draft_can_not_change_the_preceding_kept_character(joining: str) -> None:
    events = [round_text((joining + "bc", REJECTED), ("a", CORRECTION)), final("d")]

    assert scrollback(render_screen(_shown(events, 40), 40)) == ["ad"]


@pytest.mark.fault("F74")
def test_a_resize_never_erases_kept_text(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal_console()
    size = os.terminal_size((40, 8))
    monkeypatch.setattr(console.file, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: size)
    view = LiveView(console, sanitize)

    view.show(EXAMPLE)
    size = os.terminal_size((30, 8))
    view.show(round_text((" jumps", ACCEPTED), (" no", REJECTED), (" over", CORRECTION)))

    assert "\x1b8" not in written(console)
    assert scrollback(render_screen(written(console), 40)) == [" The quick fox dog and cat", " jumps over"]


def test_events_without_text_write_nothing() -> None:
    console = terminal_console()
    view = LiveView(console, sanitize)

    view.show(Prefill(9, 0, 0.1, 0.0))
    view.show(final())

    assert written(console) == ""
