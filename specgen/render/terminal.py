"""Decides whether a stream gets colours, and makes its Rich console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Literal

from rich.console import Console

from specgen.render.theme import THEME

ColorMode = Literal["auto", "always", "never"]

_DUMB_TERMINALS = ("dumb", "unknown")


class ColorLevel(StrEnum):
    """Styles that a stream can show the states of tokens in."""

    COLOR = "color"
    ATTRIBUTES = "attributes"
    """Bold, dim, struck through, underlined; without colour (NO_COLOR)."""
    MARKS = "marks"
    """No escape sequences: `[-…-]` and `{+…+}`."""


@dataclass(frozen=True, slots=True)
class ColorPolicy:
    """Holds the decision for one stream.

    Args:
        level: Styles it can show.
        is_terminal: The stream is a terminal.
        is_dumb: The terminal does not support escape sequences.
    """

    level: ColorLevel
    is_terminal: bool
    is_dumb: bool


def is_terminal(stream: IO[str] | None) -> bool:
    """Returns whether the stream is a terminal; false if it is missing or closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def decide_color(mode: ColorMode, stream: IO[str] | None, environ: Mapping[str, str]) -> ColorPolicy:
    """Decides by, in this order: a dumb terminal, `--color`, NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE, being a terminal.

    Rich's own decision is not used: it takes FORCE_COLOR=0 for yes and ignores CLICOLOR_FORCE.
    """
    terminal = is_terminal(stream)
    dumb = environ.get("TERM", "").lower() in _DUMB_TERMINALS
    return ColorPolicy(_level(mode, terminal, dumb, environ), terminal, dumb)


def _level(mode: ColorMode, terminal: bool, dumb: bool, environ: Mapping[str, str]) -> ColorLevel:
    if dumb or mode == "never":
        return ColorLevel.MARKS
    if mode == "always":
        return ColorLevel.COLOR
    if environ.get("NO_COLOR"):
        return ColorLevel.ATTRIBUTES if terminal else ColorLevel.MARKS
    if force := environ.get("FORCE_COLOR"):
        return ColorLevel.MARKS if force == "0" else ColorLevel.COLOR
    if environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return ColorLevel.COLOR
    return ColorLevel.COLOR if terminal else ColorLevel.MARKS


class _PipeSafeConsole(Console):
    def on_broken_pipe(self) -> None:
        # Rich would redirect stdout and exit with 1 here; the command line handles a closed pipe itself.
        raise


def make_console(stream: IO[str], mode: ColorMode, environ: Mapping[str, str]) -> Console:
    """Makes the console of a stream: without highlighting, markup or word wrap, and with colours as decided.

    It uses the sixteen named colours only, which follow the user's palette.
    """
    policy = decide_color(mode, stream, environ)
    return _PipeSafeConsole(
        file=stream,
        color_system=None if policy.level is ColorLevel.MARKS else "standard",
        no_color=policy.level is not ColorLevel.COLOR,
        force_terminal=policy.is_terminal,
        force_interactive=policy.is_terminal and not policy.is_dumb,
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
