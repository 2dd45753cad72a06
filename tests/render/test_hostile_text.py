"""Model text with terminal controls is shown inert and whole, however it is split over tokens and states."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.events import TextEvent
from specgen.render.live import LiveView
from specgen.render.sanitize import sanitize
from specgen.render.views import InlineView, PlainView, StepsView, TextView
from tests.profiles import by_profile, num_examples
from tests.render.screens import (
    ACCEPTED,
    CORRECTION,
    REJECTED,
    VisibleScreen,
    feed,
    final,
    generations,
    render_screen,
    round_text,
    show_all,
    terminal_console,
    written,
)

VIEWS = [InlineView, LiveView, TextView, StepsView]
ATTACKS = [
    "\x1b]52;c;aGFja2Vk\x07",
    "\x1b]52;c;aGFja2Vk\x1b\\",
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    '\x1bP$q"p\x1b\\',
    "\x1bPq#0;2;0;0;0~\x1b\\",
    "\x1b[6n",
    "\x1b[2J\x1b[H",
    "\x1b[?1049h",
    "\x1bc",
    "\x9b2J",
    "\x9d0;title\x9c",
    "\x90q\x9c",
    "\x1b[31;5m",
    "\u202egnp.exe\u202c",
    "\u2066hidden\u2069",
    "a\rb",
    "a\x08b",
    "\x0e\x0f\x0b\x0c",
    "\x1b(0qqq",
    "".join(map(chr, range(256))),
]
OWN_CONTROLS = {
    "carriage_return",
    "linefeed",
    "tab",
    "select_graphic_rendition",
    "save_cursor",
    "restore_cursor",
    "set_mode",
    "reset_mode",
    "erase_in_line",
}
"""Controls that the views themselves send."""


def _check_inert(view_type: type, events: list[TextEvent]) -> None:
    console = terminal_console(columns=40)
    show_all(view_type(console, sanitize), events)
    output = written(console)

    assert not re.search(r"[\x80-\x9f\u202a-\u202e\u2066-\u2069]", output)
    allowed = r"\x1b(\[[0-9;]*m|\[\?25h|7|8|\[\?7[lh]|\[K)"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", re.sub(allowed, "", output))
    screen = VisibleScreen(40, 8)
    feed(screen, output)
    assert (screen.title, screen.icon_name) == ("", "")
    assert screen.controls <= OWN_CONTROLS
    assert not screen.cursor.hidden


@pytest.mark.parametrize("view_type", VIEWS)
# All views clean their text with the same function: in the fast lane one meets all attacks, and all meet the last one.
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.fast("*-InlineView", "attack20-*")
def test_an_attack_split_over_tokens_and_states_has_no_effect(view_type: type, attack: str) -> None:
    step = max(len(attack) // by_profile(5, 8), 1)
    for at in range(0, len(attack) + 1, step):
        left, right = attack[:at], attack[at:]
        for states in ((ACCEPTED, CORRECTION), (ACCEPTED, REJECTED), (REJECTED, CORRECTION)):
            pair = list(zip((left, right), states, strict=True))
            own = [] if states[-1] is CORRECTION else [("!", CORRECTION)]
            _check_inert(view_type, [round_text(*pair, *own), round_text((right, ACCEPTED)), final(left)])


@pytest.mark.parametrize("view_type", VIEWS)
def test_every_byte_and_every_c1_character_is_inert(view_type: type) -> None:
    events: list[TextEvent] = [
        round_text((chr(code), ACCEPTED), (chr(code), REJECTED), (chr(code), CORRECTION)) for code in range(256)
    ]

    _check_inert(view_type, events)


@pytest.mark.parametrize("view_type", VIEWS)
def test_random_hostile_text_is_inert(view_type: type) -> None:
    hostile = st.text(st.sampled_from("\x1b\x9b\x9d\x07[]0;2JH?mc\\\u202e\r\x08 a"), max_size=6)

    @given(generations(hostile))
    @settings(max_examples=num_examples(40))
    def check(events: list[TextEvent]) -> None:
        _check_inert(view_type, events)

    check()


@pytest.mark.parametrize("view_type", VIEWS)
@pytest.mark.parametrize("text", ["[/bold]", "[/foo]", ":smile:", "[red]x[/red]", "[INST]", "**bold**", "<think>"])
@pytest.mark.fault("F15")
def test_markup_is_shown_literally(view_type: type, text: str) -> None:
    console = terminal_console()

    show_all(view_type(console, sanitize), [round_text((text, ACCEPTED))])

    assert text in written(console)


def test_plain_text_on_a_terminal_is_inert() -> None:
    for attack in ATTACKS:
        stream = io.BytesIO()
        show_all(PlainView(stream, sanitize), [round_text((attack, ACCEPTED))])
        screen = render_screen(stream.getvalue().decode(), 40)
        assert screen.controls <= {"carriage_return", "linefeed", "tab"}
