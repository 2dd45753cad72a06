from __future__ import annotations

import io
import re
import sys
from typing import get_args

import pytest
from rich.console import Console

from specgen.bench.results import Stage
from specgen.distill.settings import DistillProgress
from specgen.render.progress import _BENCH_WORDS, LINE_SECONDS, DistillBar, LoadProgress, format_figures
from specgen.render.terminal import make_console
from specgen.render.theme import THEME
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


def test_only_the_known_figures_of_a_distillation_are_shown() -> None:
    assert format_figures(DistillProgress("writing", 3, 9, 1200)) == "3/9  1200 tokens"
    assert format_figures(DistillProgress("training", 3, 9, loss=2.0, alpha=0.5)) == "3/9  loss 2.000  α 0.50"
    assert format_figures(DistillProgress("training", 3, 9, alpha=0.5), ascii_only=True) == "3/9  alpha 0.50"
    assert format_figures(DistillProgress("saving", 0, 1)) == ""


def test_a_log_gets_plain_lines_at_intervals_and_at_both_ends_of_a_stage() -> None:
    out, now = io.StringIO(), [0.0]
    with DistillBar(Console(file=out, width=80, theme=THEME), clock=lambda: now[0]) as bar:
        for done in range(1, 7):
            bar(DistillProgress("training", done, 6, loss=1.0))
            now[0] += LINE_SECONDS / 2
        bar(DistillProgress("saving", 0, 1))

    assert "\x1b" not in out.getvalue()
    assert [line.split("  ")[1] for line in out.getvalue().splitlines()[:-1]] == ["1/6", "3/6", "5/6", "6/6"]
    assert out.getvalue().splitlines()[-1] == "saving"


def test_a_quiet_distillation_is_silent() -> None:
    out = io.StringIO()
    with DistillBar(Console(file=out, width=80, theme=THEME), quiet=True) as bar:
        bar(DistillProgress("training", 1, 6, loss=1.0))

    assert out.getvalue() == ""


def test_a_terminal_shows_the_bar_of_a_distillation_and_its_cursor_returns() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, theme=THEME, force_terminal=True, force_interactive=True)
    with DistillBar(console) as bar:
        bar(DistillProgress("writing", 1, 2, 50))
        bar(DistillProgress("training", 3, 9, loss=2.0, alpha=0.5))
        bar._progress.refresh()  # type: ignore[union-attr]

    shown = out.getvalue()
    assert re.search(r"training[^\r\n]*loss 2\.000", shown)
    assert "loss 2.000  α 0.50" in shown
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown


def test_every_stage_of_a_benchmark_has_words() -> None:
    assert set(get_args(Stage)) <= _BENCH_WORDS.keys()
