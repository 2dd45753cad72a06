"""Errors, notices and the banner in, lines for stderr out, as rich `Text`; nothing is printed here.

Names and messages that came from outside are made safe and kept on one line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from specgen.core.errors import SpecgenError
from specgen.core.events import Notice
from specgen.core.results import RunInfo
from specgen.render.formatting import format_draft, format_model, format_settings
from specgen.render.sanitize import one_line
from specgen.render.theme import Glyphs, glyphs, mark_rejected, mark_target

if TYPE_CHECKING:
    from specgen.render.views import ViewName

LABEL_CELLS = 9


def format_banner(info: RunInfo, *, marks: bool = False, ascii_only: bool = False, view: ViewName = "inline") -> Text:
    """At most four lines before the answer: target, draft, settings, and what the styles mean.

    Args:
        info: The run.
        marks: The stream has no styles; explain the marks instead.
        ascii_only: The terminal shows ASCII only.
        view: How the answer is shown; its styles or marks are explained.
    """
    lines = [
        labelled("target", format_model(info.target, ascii_only=ascii_only)),
        labelled("draft", format_draft(info, ascii_only=ascii_only)),
        labelled("settings", format_settings(info)),
    ]
    signs = _signs(view, glyphs(ascii_only=ascii_only), marks=marks) if info.drafter != "none" else []
    if signs:
        lines.append(labelled("legend", "").append_text(Text(" " if marks else "  ").join(signs)))
    return Text("\n").join(lines)


def format_error(error: SpecgenError, *, ascii_only: bool = False) -> Text:
    """`error: …` and, if there is one, `hint: …`: one line each and no box, so that they can be grepped."""
    text = Text().append("error: ", "error").append(one_line(error.message, ascii_only=ascii_only))
    if error.hint:
        text.append("\n").append("hint: ", "muted").append(one_line(error.hint, ascii_only=ascii_only))
    return text


def format_notice(notice: Notice, *, ascii_only: bool = False) -> Text:
    """`warning: …` on one line."""
    return Text().append("warning: ", "warning").append(one_line(notice.message, ascii_only=ascii_only))


def labelled(label: str, value: str) -> Text:
    """A line of a block: the label in its column, then the value."""
    return Text().append(f"{label:<{LABEL_CELLS}}", "label").append(value)


def hang(block: Text, width: int) -> Text:
    """Lines made by `labelled`, wrapped at words: what does not fit into `width` cells goes on behind the label."""
    lines = []
    for line in block.split("\n", allow_blank=True):
        pieces = at_words(line[LABEL_CELLS:], width - LABEL_CELLS)
        lines.append(line[:LABEL_CELLS].append_text(Text(f"\n{'':{LABEL_CELLS}}").join(pieces)))
    return Text("\n").join(lines)


def fitted(block: Text, console: Console) -> Text:
    """Lines made by `labelled`: on a terminal as `hang` wraps them, elsewhere each in one piece, for grep."""
    return hang(block, console.width) if console.is_terminal else block


def at_words(text: Text, width: int) -> list[Text]:
    """A line as lines of at most `width` cells, broken at spaces and not at those that no line may break at.

    A word that is wider, such as a path, stays whole, so that it can be copied.
    """
    breaks, used = [], 0
    for word in re.finditer("[^ ]+ *", text.plain):
        if used and used + cell_len(word[0].rstrip(" ")) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    pieces = list(text.divide(breaks))
    for piece in pieces[:-1]:
        piece.rstrip()
    return pieces


def _signs(view: ViewName, signs: Glyphs, *, marks: bool) -> list[Text]:
    """Each state of a token as a view shows it, in a word for it; nothing for a view that tells none apart."""
    accepted, target = Text("accepted", "accepted"), Text("target", "target")
    match view:
        case "steps":
            return [accepted, Text("-rejected", "rejected"), Text("-discarded", "discarded"), Text("+target", "target")]
        case "text":
            return [accepted, Text(mark_target("target")) if marks else target]
        case "live":
            return [] if marks else [accepted, target, Text("rejected, for a moment", "pending")]
        case "off":
            return []
    if marks:
        # As `mark_rejected` writes a count, whatever the terminal can show.
        return [accepted, Text(mark_rejected("rejected +n discarded", 0)), Text(mark_target("target"))]
    return [accepted, Text("rejected", "rejected"), Text(f"{signs.discarded}n discarded", "discarded"), target]
