from __future__ import annotations

import io
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specgen.core.errors import OutputError
from specgen.core.events import TextEvent
from specgen.render.sanitize import sanitize
from specgen.render.terminal import make_console
from specgen.render.theme import ROLES, TARGET_ROLES
from specgen.render.views import InlineView
from tests.profiles import num_examples
from tests.render.screens import (
    ACCEPTED,
    CORRECTION,
    DISCARDED,
    EXAMPLE,
    REJECTED,
    CountingStream,
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

UNMARKED_TEXT = st.text("ab +日🙂\n\té[]{}", max_size=6).filter(lambda text: not re.search(r"\[-|-\]|\{\+|\+\}", text))


def _shown(events: list[TextEvent], **environ: str) -> str:
    console = terminal_console(**environ)
    show_all(InlineView(console, sanitize), events)
    return written(console)


def test_states_differ_by_colour_and_by_attribute() -> None:
    assert _shown([EXAMPLE]).startswith(
        "\x1b[1;36m The quick\x1b[0m\x1b[2;9;35m dog\x1b[0m\x1b[2m⋯2\x1b[0m\x1b[4m fox\x1b[0m"
    )


def test_no_color_keeps_attributes_only() -> None:
    shown = _shown([EXAMPLE], NO_COLOR="1")

    assert shown.startswith("\x1b[1m The quick\x1b[0m\x1b[2;9m dog\x1b[0m\x1b[2m⋯2\x1b[0m\x1b[4m fox\x1b[0m")
    codes = {code for group in re.findall(r"\x1b\[([0-9;]*)m", shown) for code in group.split(";")}
    assert not codes & {str(code) for code in (*range(30, 50), *range(90, 108))}


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"FORCE_COLOR": "0"}])
def test_a_terminal_without_styles_gets_wdiff_marks_and_no_escapes(environ: dict[str, str]) -> None:
    assert _shown([EXAMPLE], **environ) == " The quick[- dog +2-]{+ fox+}\n"


def test_a_rejected_token_that_is_last_has_no_count() -> None:
    event = round_text(("a", ACCEPTED), ("b", REJECTED), ("c", CORRECTION))

    assert _shown([event], TERM="dumb") == "a[-b-]{+c+}\n"
    assert "⋯" not in _shown([event])


def test_a_rejected_newline_does_not_break_the_line() -> None:
    event = round_text((".\n\n", REJECTED), ("!", CORRECTION))

    assert _shown([event], TERM="dumb") == "[-.⏎⏎-]{+!+}\n"


def test_a_rejected_token_without_text_is_a_dot() -> None:
    event = round_text(("", REJECTED), ("", DISCARDED), ("!", CORRECTION))

    assert _shown([event], TERM="dumb") == "[-· +1-]{+!+}\n"


def test_an_ascii_terminal_gets_ascii_symbols() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    view = InlineView(make_console(stream, "always", {}), sanitize)

    show_all(view, [round_text(("\n", REJECTED), ("x", DISCARDED), ("é", CORRECTION))])

    assert re.sub(rb"\x1b\[[0-9;?]*[mh]", b"", raw.getvalue()) == b"\\n+1\\xe9\n"


@given(generations(UNMARKED_TEXT))
@settings(max_examples=num_examples(100))
def test_without_marks_the_marked_text_is_the_answer(events: list[TextEvent]) -> None:
    text = answer(events)
    assume(not re.search(r"\{\+|\+\}|\[-|-\]", text))  # two tokens may make a mark together

    shown = _shown(events, TERM="dumb")

    unmarked = re.sub(r"\{\+(.*?)\+\}", r"\1", re.sub(r"\[-.*?-\]", "", shown, flags=re.S), flags=re.S)
    assert unmarked in (text, text + "\n")


@given(generations(st.text("ab cd\n", max_size=5)), st.sampled_from([20, 40, 80]))
@settings(max_examples=num_examples(60))
def test_styled_text_without_rejected_tokens_is_the_answer(events: list[TextEvent], columns: int) -> None:
    shown = _shown(events)

    kept = re.sub(r"\x1b\[2(;9;35)?m[^\x1b]*\x1b\[0m", "", shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[mh]", "", kept)
    assert scrollback(render_screen(plain, columns)) == scrollback(render_screen(answer(events), columns))


@given(generations(st.text("ab\n", max_size=5)))
@settings(max_examples=num_examples(30))
def test_the_only_controls_are_styles_and_the_cursor(events: list[TextEvent]) -> None:
    rest = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25h", "", _shown(events))

    assert "\x1b" not in rest


def test_a_round_is_one_write_and_one_flush() -> None:
    console = pipe_console("always")
    assert isinstance(console.file, CountingStream)
    view = InlineView(console, sanitize)

    view.show(EXAMPLE)
    view.show(EXAMPLE)

    assert (console.file.num_writes, console.file.num_flushes) == (2, 2)


def test_closing_ends_the_line_resets_styles_and_can_be_repeated() -> None:
    console = terminal_console()
    view = InlineView(console, sanitize)

    view.show(EXAMPLE)
    view.close()
    view.close()

    assert written(console).count("\n") == 1
    assert "\x1b[0m\x1b[?25h\n" in written(console)


def test_closing_after_a_newline_adds_none() -> None:
    console = pipe_console()

    show_all(InlineView(console, sanitize), [round_text(("a", ACCEPTED)), final("b\n")])

    assert written(console) == "ab\n"


def test_a_pipe_gets_no_terminal_controls() -> None:
    console = pipe_console("always")

    InlineView(console, sanitize).close()

    assert written(console) == ""


def test_a_broken_pipe_reaches_the_caller_once() -> None:
    class Broken(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    view = InlineView(make_console(Broken(), "always", {}), sanitize)

    with pytest.raises(BrokenPipeError):
        view.show(EXAMPLE)
    view.close()


def test_a_full_disk_is_an_output_error() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    view = InlineView(make_console(Full(), "always", {}), sanitize)

    with pytest.raises(OutputError, match="No space left on device") as caught:
        view.show(EXAMPLE)
    view.close()

    assert (caught.value.code, "28" in caught.value.message) == ("output", False)


@pytest.mark.fault("F74")
def test_text_reaches_a_terminal_that_claims_to_have_no_columns() -> None:
    console = terminal_console(columns=0)

    show_all(InlineView(console, sanitize), [EXAMPLE])

    assert "quick" in written(console)


def test_every_state_has_a_style() -> None:
    assert {"accepted", "rejected", "discarded", *TARGET_ROLES} <= ROLES.keys()
