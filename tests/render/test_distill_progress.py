"""Progress of a distillation: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from specgen.distill.settings import DistillProgress
from specgen.render.distill_progress import LINE_SECONDS, DistillBar, format_figures
from specgen.render.theme import THEME


def test_only_known_figures_are_shown() -> None:
    assert format_figures(DistillProgress("writing", 3, 9, 1200)) == "3/9  1200 tokens"
    assert format_figures(DistillProgress("training", 3, 9, loss=2.0, alpha=0.5)) == "3/9  loss 2.000  α 0.50"
    assert format_figures(DistillProgress("training", 3, 9, alpha=0.5), ascii_only=True) == "3/9  alpha 0.50"
    assert format_figures(DistillProgress("saving", 0, 1)) == ""


def test_a_log_gets_plain_lines_at_intervals_and_at_both_ends_of_a_stage() -> None:
    out, now = StringIO(), [0.0]
    with DistillBar(Console(file=out, width=80, theme=THEME), clock=lambda: now[0]) as bar:
        for done in range(1, 7):
            bar(DistillProgress("training", done, 6, loss=1.0))
            now[0] += LINE_SECONDS / 2
        bar(DistillProgress("saving", 0, 1))

    assert "\x1b" not in out.getvalue()
    assert [line.split("  ")[1] for line in out.getvalue().splitlines()[:-1]] == ["1/6", "3/6", "5/6", "6/6"]
    assert out.getvalue().splitlines()[-1] == "saving"


def test_quiet_is_silent() -> None:
    out = StringIO()
    with DistillBar(Console(file=out, width=80, theme=THEME), quiet=True) as bar:
        bar(DistillProgress("training", 1, 6, loss=1.0))

    assert out.getvalue() == ""


def test_a_terminal_shows_a_bar_and_its_cursor_returns() -> None:
    out = StringIO()
    console = Console(file=out, width=100, theme=THEME, force_terminal=True, force_interactive=True)
    with DistillBar(console) as bar:
        bar(DistillProgress("writing", 1, 2, 50))
        bar(DistillProgress("training", 3, 9, loss=2.0, alpha=0.5))
        bar._progress.refresh()  # type: ignore[union-attr]

    shown = out.getvalue()
    assert "training the draft" in shown
    assert "loss 2.000  α 0.50" in shown
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown
