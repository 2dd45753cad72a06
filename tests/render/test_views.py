from __future__ import annotations

import io

import pytest

from specgen.core.draft_tree import DraftTree
from specgen.core.events import Piece, Round, RoundText, TokenState
from specgen.render.live import LiveView
from specgen.render.sanitize import sanitize
from specgen.render.terminal import ColorMode
from specgen.render.views import (
    InlineView,
    PlainView,
    SanitizeMode,
    StepsView,
    TextView,
    ViewName,
    make_view,
    resolve_view,
)
from tests.render.screens import EXAMPLE, TARGET, final, pipe_console, round_text, show_all, terminal_console, written


@pytest.mark.parametrize(
    ("name", "is_terminal", "color", "expected"),
    [
        ("auto", True, "auto", InlineView),
        ("auto", True, "never", InlineView),
        ("auto", False, "auto", PlainView),
        ("auto", False, "never", PlainView),
        ("auto", False, "always", InlineView),
        ("off", True, "auto", PlainView),
        ("inline", False, "auto", InlineView),
        ("live", True, "auto", LiveView),
        ("text", False, "auto", TextView),
        ("steps", True, "auto", StepsView),
    ],
)
def test_the_view_follows_the_option_and_the_stream(
    name: ViewName, is_terminal: bool, color: ColorMode, expected: type
) -> None:
    console = terminal_console(color) if is_terminal else pipe_console(color)

    resolved = resolve_view(name, is_terminal=is_terminal, color=color)
    view = make_view(resolved, console=console, binary=io.BytesIO(), is_terminal=is_terminal)

    assert type(view) is expected


def test_a_command_has_its_own_default_on_a_terminal() -> None:
    assert resolve_view("auto", is_terminal=True, default="live") == "live"
    assert resolve_view("auto", is_terminal=False, default="live") == "off"
    assert resolve_view("text", is_terminal=True, default="live") == "text"


def test_force_color_alone_does_not_style_a_pipe() -> None:
    console = pipe_console(FORCE_COLOR="1")

    resolved = resolve_view("auto", is_terminal=False)
    assert type(make_view(resolved, console=console, binary=io.BytesIO(), is_terminal=False)) is PlainView


@pytest.mark.parametrize(
    ("mode", "is_terminal", "expected"),
    [
        ("auto", False, b"\x1bc\n"),
        ("auto", True, "␛c\n".encode()),
        ("always", False, "␛c\n".encode()),
        ("never", True, b"\x1bc\n"),
    ],
)
def test_plain_text_is_sanitized_on_a_terminal_or_on_request(
    mode: SanitizeMode, is_terminal: bool, expected: bytes
) -> None:
    binary = io.BytesIO()
    console = terminal_console() if is_terminal else pipe_console()

    view = make_view("off", console=console, binary=binary, is_terminal=is_terminal, sanitize_mode=mode)
    show_all(view, [round_text(("\x1bc", TARGET))])

    assert binary.getvalue() == expected


def test_an_explicit_view_in_a_pipe_has_marks_or_colours_by_the_color_option() -> None:
    marked, coloured = pipe_console(), pipe_console("always")

    for console in (marked, coloured):
        show_all(make_view("inline", console=console, binary=io.BytesIO(), is_terminal=False), [EXAMPLE])

    assert written(marked) == " The quick[- dog +2-]{+ fox+}\n"
    assert "\x1b[1;36m" in written(coloured)
    assert "[-" not in written(coloured)


def test_an_explicit_view_in_a_pipe_is_sanitized_unless_switched_off() -> None:
    safe, raw = pipe_console(), pipe_console()

    for console, mode in ((safe, "auto"), (raw, "never")):
        view = make_view("text", console=console, binary=io.BytesIO(), is_terminal=False, sanitize_mode=mode)
        show_all(view, [round_text(("\x1bc", TARGET))])

    assert "\x1b" not in written(safe)
    assert "\x1b" in written(raw)


def test_kept_text_is_styled_by_state_and_no_draft_is_shown() -> None:
    console = terminal_console()

    show_all(TextView(console, sanitize), [EXAMPLE, final(".")])

    assert written(console) == "\x1b[1;36m The quick\x1b[0m\x1b[4m fox\x1b[0m.\x1b[0m\x1b[?25h\n"


def test_without_styles_only_the_targets_own_tokens_are_marked() -> None:
    console = pipe_console()

    show_all(TextView(console, sanitize), [EXAMPLE, final(".")])

    assert written(console) == " The quick{+ fox+}.\n"


def branching_round() -> RoundText:
    """Drafts `The (quick (dog), slow (cat))` and `A (fox)`; the target writes `The slow hen`."""
    tree = DraftTree((1, 2, 3, 4, 5, 6, 7), (-1, 0, 1, 0, 3, -1, 5))
    round_ = Round(0, (1, 4, 5), 2, 9, 0, 0.01, 0.02, 0.0, "model", tree=tree)
    states = (TokenState.ACCEPTED, TokenState.ACCEPTED, TokenState.REJECTED, TokenState.CORRECTION)
    pieces = tuple(
        Piece(token, text, state)
        for token, text, state in zip((1, 4, 5, 9), ("The", " slow", " cat", " hen"), states, strict=True)
    )
    return RoundText(round_, pieces, ("The", " quick", " dog", " slow", " cat", " A", " fox"))


def shown(name: ViewName) -> str:
    console = pipe_console()
    show_all(make_view(name, console=console, binary=io.BytesIO(), is_terminal=False), [branching_round()])
    return written(console)


def test_inline_shows_the_best_branch_and_counts_the_others() -> None:
    assert shown("inline") == "The slow[- cat-]⋔2{+ hen+}\n"


def test_steps_draw_the_other_branches_of_a_tree() -> None:
    first, *rest = shown("steps").splitlines()

    assert "The ␣slow | -␣cat | +␣hen" in first
    assert [line.strip() for line in rest[:2]] == ["└ -␣quick -␣dog", "└ -␣A -␣fox"]
    assert len(rest[0]) - len(rest[0].lstrip()) == len(rest[1]) - len(rest[1].lstrip()) + 2
