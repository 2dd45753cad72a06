"""A stream, the --color option and the environment in; what the stream can show, and a console for it, out."""

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
    """How states of tokens are told apart on a stream."""

    COLOR = "color"
    ATTRIBUTES = "attributes"
    """Bold, dim, struck through, underlined; no colour (NO_COLOR)."""
    MARKS = "marks"
    """No escape at all: `[-…-]` and `{+…+}`."""


@dataclass(frozen=True, slots=True)
class ColorPolicy:
    """What was decided for one stream.

    Args:
        level: How states are told apart.
        is_terminal: Somebody may be looking.
        is_dumb: The terminal understands no escapes.
    """

    level: ColorLevel
    is_terminal: bool
    is_dumb: bool


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether the stream is a terminal; a missing or closed stream is none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def decide_color(mode: ColorMode, stream: IO[str] | None, environ: Mapping[str, str]) -> ColorPolicy:
    """Decide by: a dumb terminal, `--color`, NO_COLOR, FORCE_COLOR or CLICOLOR_FORCE, then whether it is a terminal.

    Rich is not asked: it takes FORCE_COLOR=0 for a yes and does not know CLICOLOR_FORCE.
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


class _PlainSpokenConsole(Console):
    def on_broken_pipe(self) -> None:
        # Rich would redirect stdout and exit with 1 here; a closed pipe is for the command line to judge.
        raise


def make_console(stream: IO[str], mode: ColorMode, environ: Mapping[str, str]) -> Console:
    """The one console of a stream: nothing highlighted, no markup, no word wrap, colours as decided.

    The sixteen named colours only: they follow the user's own palette.
    """
    policy = decide_color(mode, stream, environ)
    return _PlainSpokenConsole(
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
    """Whether the console's stream can't show more than ASCII."""
    return not console.encoding.startswith("utf")
