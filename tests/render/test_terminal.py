from __future__ import annotations

import io
import re

import pytest
from rich.text import Text

from specgen.render.terminal import ColorLevel, ColorMode, decide_color, is_ascii_only, is_terminal, make_console
from tests.render.screens import Terminal, pipe_console, terminal_console, written

COLOR, ATTRIBUTES, MARKS = ColorLevel.COLOR, ColorLevel.ATTRIBUTES, ColorLevel.MARKS


@pytest.mark.parametrize(
    ("mode", "tty", "environ", "level"),
    [
        ("auto", True, {}, COLOR),
        ("auto", False, {}, MARKS),
        ("always", False, {}, COLOR),
        ("never", True, {}, MARKS),
        ("never", True, {"FORCE_COLOR": "1"}, MARKS),
        ("auto", True, {"NO_COLOR": "1"}, ATTRIBUTES),
        ("auto", True, {"NO_COLOR": ""}, COLOR),
        ("auto", False, {"NO_COLOR": "1"}, MARKS),
        ("auto", False, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, MARKS),
        ("always", True, {"NO_COLOR": "1"}, COLOR),
        ("auto", False, {"FORCE_COLOR": "1"}, COLOR),
        ("auto", False, {"FORCE_COLOR": ""}, MARKS),
        ("auto", True, {"FORCE_COLOR": "0"}, MARKS),
        ("auto", False, {"FORCE_COLOR": "0"}, MARKS),
        ("auto", False, {"CLICOLOR_FORCE": "1"}, COLOR),
        ("auto", False, {"CLICOLOR_FORCE": "0"}, MARKS),
        ("auto", True, {"CLICOLOR_FORCE": "0"}, COLOR),
        ("auto", True, {"TERM": "dumb"}, MARKS),
        ("always", True, {"TERM": "dumb"}, MARKS),
        ("auto", True, {"TERM": "dumb", "FORCE_COLOR": "1"}, MARKS),
    ],
)
def test_the_color_option_and_variables_have_an_order_of_precedence(
    mode: ColorMode, tty: bool, environ: dict[str, str], level: ColorLevel
) -> None:
    stream = Terminal() if tty else io.StringIO()

    assert decide_color(mode, stream, environ) is level


def test_each_stream_is_decided_on_its_own() -> None:
    assert decide_color("auto", Terminal(), {}) is COLOR
    assert decide_color("auto", io.StringIO(), {}) is MARKS


def test_a_closed_or_missing_stream_is_not_a_terminal() -> None:
    stream = io.StringIO()
    stream.close()

    assert not is_terminal(stream)
    assert not is_terminal(None)


def test_force_color_does_not_turn_a_pipe_into_a_terminal() -> None:
    console = pipe_console(FORCE_COLOR="1")

    assert not console.is_terminal
    assert not console.is_interactive


def test_no_color_keeps_attributes_and_drops_colours() -> None:
    console = terminal_console(NO_COLOR="1")

    console.print(Text("kept", "accepted"), Text("gone", "rejected"))

    assert re.findall(r"\x1b\[([0-9;]*)m", written(console)) == ["1", "0", "2;9", "0"]


def test_only_the_sixteen_named_colours_are_used() -> None:
    console = terminal_console(COLORTERM="truecolor", TERM="xterm-256color")

    console.print(Text("kept", "accepted"))

    assert "\x1b[1;36mkept" in written(console)


def test_printing_keeps_long_lines_markup_and_emoji_codes_unchanged() -> None:
    console = pipe_console()
    text = "[/bold] :smile: 1234 " * 20

    console.print(text)

    assert written(console) == text + "\n"


def test_a_broken_pipe_reaches_the_caller_instead_of_ending_the_program() -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    console = make_console(Broken(), "never", {})

    with pytest.raises(BrokenPipeError):
        console.print("hello")


def test_a_stream_of_another_encoding_is_ascii_only() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    assert is_ascii_only(make_console(stream, "auto", {}))
    assert not is_ascii_only(pipe_console())
