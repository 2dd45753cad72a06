"""Explains the styles or marks of a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from specgen.render.theme import glyphs, mark_rejected, mark_target

if TYPE_CHECKING:
    from specgen.render.views import ViewName


def format_legend(view: ViewName, *, marks: bool, ascii_only: bool) -> Text | None:
    """Returns each state of a token as the view shows it; None for a view that shows no states.

    Args:
        view: The view.
        marks: The stream shows marks instead of styles.
        ascii_only: The terminal shows ASCII only.
    """
    accepted, target = Text("accepted", "accepted"), Text("target", "target")
    rejected = Text("rejected", "rejected")
    match view:
        case "steps":
            states = [
                accepted,
                Text("-rejected", "rejected"),
                Text("-discarded", "discarded"),
                Text("+target", "target"),
            ]
        case "text":
            states = [accepted, Text(mark_target("target")) if marks else target]
        case "live" if not marks:
            states = [accepted, target, Text("rejected, until the next round", "pending")]
        case "live" | "off":
            return None
        case _ if marks:
            # `mark_rejected` writes the count with a plus on any terminal.
            states = [accepted, Text(mark_rejected("rejected +n discarded", 0)), Text(mark_target("target"))]
        case _:
            discarded = Text(f"{glyphs(ascii_only=ascii_only).discarded}n discarded", "discarded")
            states = [accepted, rejected, discarded, target]
    return Text(" " if marks else "  ").join(states)
