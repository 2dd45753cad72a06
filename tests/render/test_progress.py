from __future__ import annotations

import io
import sys

import pytest

from specgen.render.progress import LoadProgress
from specgen.render.terminal import make_console
from tests.render.screens import Terminal, pipe_console, render_screen, scrollback, terminal_console, written


def _load(progress: LoadProgress) -> None:
    with progress:
        progress.stage("downloading evil\x1b]0;x\x07[/red] :smile:")
        progress.bytes(10, None)
        progress.bytes(512, 1024)
        progress.stage("loading")


@pytest.mark.parametrize("columns", [5, 20, 80])
def test_the_progress_line_is_erased_and_the_terminal_reset(columns: int) -> None:
    console = terminal_console(columns=columns)

    _load(LoadProgress(console))

    assert written(console)
    screen = render_screen(written(console), columns)
    assert scrollback(screen) == []
    assert not screen.cursor.hidden
    assert screen.title == ""


def test_names_are_shown_literally() -> None:
    console = terminal_console(columns=200)

    with LoadProgress(console) as progress:
        progress.stage("loading [/red] :smile:\x1b]0;x\x07")
        progress.bytes(512, 1024)
        # The bar is drawn in its own thread; only its last state before it is erased is certain.
        progress.stop()

    assert "loading [/red] :smile:␛]0;x␇" in written(console)


@pytest.mark.parametrize("quiet", [True, False])
def test_without_a_terminal_there_is_no_output(quiet: bool) -> None:
    console = pipe_console(FORCE_COLOR="1")

    _load(LoadProgress(console, quiet=quiet))

    assert written(console) == ""


def test_quiet_is_silent_on_a_terminal_even_with_verbose() -> None:
    console = terminal_console()

    _load(LoadProgress(console, quiet=True, verbose=True))

    assert written(console) == ""


def test_a_dumb_terminal_gets_no_animation() -> None:
    console = terminal_console(TERM="dumb")

    _load(LoadProgress(console))

    assert written(console) == ""


def test_verbose_prints_one_plain_safe_line_per_stage() -> None:
    console = pipe_console()

    _load(LoadProgress(console, verbose=True))

    assert written(console) == "downloading evil␛]0;x␇[/red] :smile:\nloading\n"


def test_an_error_while_loading_resets_the_terminal() -> None:
    console = terminal_console()

    def fail() -> None:
        with LoadProgress(console) as progress:
            progress.stage("loading")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert not render_screen(written(console), 80).cursor.hidden


def test_stopping_again_and_using_it_afterwards_is_harmless() -> None:
    console = terminal_console()

    with LoadProgress(console) as progress:
        progress.stage("loading")
        progress.stop()
        length = len(written(console))
        progress.stage("late")
        progress.bytes(1, 2)
        progress.stop()

    assert len(written(console)) == length


def test_stdout_is_unchanged_by_the_progress_line() -> None:
    before = (sys.stdout, sys.stderr)

    with LoadProgress(make_console(Terminal(), "auto", {"TERM": "xterm"})):
        assert (sys.stdout, sys.stderr) == before


def test_ascii_terminals_get_ascii() -> None:
    raw = io.BytesIO()

    class AsciiTerminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    _load(LoadProgress(make_console(AsciiTerminal(raw, encoding="ascii"), "auto", {"TERM": "xterm"})))

    assert raw.getvalue().isascii()
