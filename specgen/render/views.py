"""Resolves --view and makes the view, by --color, --sanitize and stdout."""

from __future__ import annotations

from functools import partial
from typing import BinaryIO, Literal

from rich.console import Console

from specgen.render.inline import InlineView
from specgen.render.live import LiveView
from specgen.render.plain import PlainView
from specgen.render.sanitize import sanitize
from specgen.render.steps import StepsView
from specgen.render.terminal import ColorMode, is_ascii_only
from specgen.render.text import TextView
from specgen.render.view import Sanitizer, View, unchanged

ViewName = Literal["auto", "inline", "live", "text", "steps", "off"]
SanitizeMode = Literal["auto", "always", "never"]


def resolve_view(
    name: ViewName, *, is_terminal: bool, color: ColorMode = "auto", default: ViewName = "inline"
) -> ViewName:
    """Resolves `auto` for an answer on stdout.

    On a terminal it is `default`. In a pipe it is the exact bytes (`off`), unless `--color always` requests styles
    there; FORCE_COLOR alone does not, since build servers set it for all programs.

    Args:
        name: The requested view.
        is_terminal: Whether stdout is a terminal.
        color: Value of `--color`.
        default: What `auto` means on a terminal: `inline` for generate, `live` for chat.
    """
    if name != "auto":
        return name
    return default if is_terminal or color == "always" else "off"


def make_view(
    name: ViewName,
    *,
    console: Console,
    binary: BinaryIO,
    is_terminal: bool,
    sanitize_mode: SanitizeMode = "auto",
) -> View:
    """Makes the view for an answer on stdout.

    Args:
        name: The view, from `resolve_view`.
        console: Console of stdout, from `make_console`.
        binary: The bytes of stdout.
        is_terminal: Whether stdout is a terminal.
        sanitize_mode: `auto` sanitizes everything except `off` in a pipe: a person reads all other views.
    """
    sanitizer: Sanitizer = partial(sanitize, ascii_only=is_ascii_only(console))
    if sanitize_mode == "never" or (sanitize_mode == "auto" and name == "off" and not is_terminal):
        sanitizer = unchanged
    if name == "off":
        return PlainView(binary, sanitizer)
    if name == "live":
        return LiveView(console, sanitizer)
    if name == "text":
        return TextView(console, sanitizer)
    if name == "steps":
        return StepsView(console, sanitizer)
    return InlineView(console, sanitizer)
