from __future__ import annotations

from specgen.render.sanitize import sanitize
from specgen.render.text import TextView
from tests.render.screens import EXAMPLE, final, pipe_console, show_all, terminal_console, written


def test_kept_text_is_styled_by_state_and_no_draft_is_shown() -> None:
    console = terminal_console()

    show_all(TextView(console, sanitize), [EXAMPLE, final(".")])

    assert written(console) == "\x1b[1;36m The quick\x1b[0m\x1b[4m fox\x1b[0m.\x1b[0m\x1b[?25h\n"


def test_without_styles_only_the_targets_own_tokens_are_marked() -> None:
    console = pipe_console()

    show_all(TextView(console, sanitize), [EXAMPLE, final(".")])

    assert written(console) == " The quick{+ fox+}.\n"
