"""Formats the banner, errors and notices for stderr. Text from outside is made safe and kept on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from specgen.core.errors import SpecgenError
from specgen.core.events import Notice
from specgen.core.results import RunInfo
from specgen.render.formatting import format_drafter, format_model, format_settings, labelled
from specgen.render.sanitize import one_line
from specgen.render.theme import format_legend

if TYPE_CHECKING:
    from specgen.render.views import ViewName


def format_banner(info: RunInfo, *, marks: bool = False, ascii_only: bool = False, view: ViewName = "inline") -> Text:
    """Formats at most four lines before the answer: target, draft, settings and the legend of the view."""
    lines = [
        labelled("target", format_model(info.target, ascii_only=ascii_only)),
        labelled("draft", format_drafter(info.draft, info.drafter, ascii_only=ascii_only)),
        labelled("settings", format_settings(info)),
    ]
    if info.server is not None and view != "off":
        view = "text"  # a server shows no rejected tokens
    legend = format_legend(view, marks=marks, ascii_only=ascii_only)
    has_states = info.drafter != "none" and (info.server is None or info.server.marks_tokens)
    if legend is not None and has_states:
        lines.append(labelled("legend", "").append_text(legend))
    return Text("\n").join(lines)


def format_error(error: SpecgenError, *, ascii_only: bool = False) -> Text:
    """Formats `error: …` and, if there is one, `hint: …`, one line each and without a box, for grep."""
    text = Text().append("error: ", "error").append(one_line(error.message, ascii_only=ascii_only))
    if error.hint:
        text.append("\n").append("hint: ", "muted").append(one_line(error.hint, ascii_only=ascii_only))
    return text


def format_notice(notice: Notice, *, ascii_only: bool = False) -> Text:
    """Formats `warning: …` on one line."""
    return Text().append("warning: ", "warning").append(one_line(notice.message, ascii_only=ascii_only))
