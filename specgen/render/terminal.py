"""Decides whether a stream gets colours, and makes its Rich console."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import IO, Literal

from rich.console import Console

from specgen.render.theme import THEME

ColorMode = Literal["auto", "always", "never"]


class ColorLevel(StrEnum):
    """Styles that a stream can show the states of tokens in."""

    COLOR = "color"
    ATTRIBUTES = "attributes"
    """Bold, dim, struck through, underlined; without colour (NO_COLOR)."""
    MARKS = "marks"
    """No escape sequences: `[-…-]` and `{+…+}`."""


def is_terminal(stream: IO[str] | None) -> bool:
    """Returns whether the stream is a terminal; false if it is missing or closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def decide_color(mode: ColorMode, stream: IO[str] | None, environ: Mapping[str, str]) -> ColorLevel:
    """Decides by, in this order: a dumb terminal, `--color`, NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE, being a terminal.

    Rich's own decision is not used: it takes FORCE_COLOR=0 for yes and ignores CLICOLOR_FORCE.
    """
    if mode == "never" or _is_dumb(environ):
        return ColorLevel.MARKS
    if mode == "always":
        return ColorLevel.COLOR
    if environ.get("NO_COLOR"):
        return ColorLevel.ATTRIBUTES if is_terminal(stream) else ColorLevel.MARKS
    if force := environ.get("FORCE_COLOR"):
        return ColorLevel.MARKS if force == "0" else ColorLevel.COLOR
    is_forced = environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    return ColorLevel.COLOR if is_forced or is_terminal(stream) else ColorLevel.MARKS


def _is_dumb(environ: Mapping[str, str]) -> bool:
    """Returns whether the terminal does not support escape sequences."""
    return environ.get("TERM", "").lower() in ("dumb", "unknown")


class _PipeSafeConsole(Console):
    def on_broken_pipe(self) -> None:
        # Rich would redirect stdout and exit with 1 here; the command line handles a closed pipe itself.
        raise


def make_console(stream: IO[str], mode: ColorMode, environ: Mapping[str, str]) -> Console:
    """Makes the console of a stream: without highlighting, markup or word wrap, and with colours as decided.

    It uses the sixteen named colours only, which follow the user's palette.
    """
    level, on_terminal = decide_color(mode, stream, environ), is_terminal(stream)
    return _PipeSafeConsole(
        file=stream,
        color_system=None if level is ColorLevel.MARKS else "standard",
        no_color=level is not ColorLevel.COLOR,
        force_terminal=on_terminal,
        force_interactive=on_terminal and not _is_dumb(environ),
        force_jupyter=False,
        theme=THEME,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        _environ=environ,
    )


def is_ascii_only(console: Console) -> bool:
    """Returns whether the console's stream can show ASCII only."""
    return not console.encoding.startswith("utf")
