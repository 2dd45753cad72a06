"""Defines the looks of accepted, rejected and other text: styles, marks, glyphs, and the legend that explains them.

The three states differ in shape as well as in colour, so they stay distinct with NO_COLOR and in any colour vision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text
from rich.theme import Theme

if TYPE_CHECKING:
    from specgen.render.views import ViewName

ROLES: dict[str, str] = {
    "accepted": "bold cyan",
    "rejected": "dim strike magenta",
    "discarded": "dim",
    "correction": "underline",
    "bonus": "underline",
    "target": "underline",
    "pending": "dim italic",
    "label": "bold",
    "muted": "dim",
    "warning": "bold yellow",
    "error": "bold red",
}
"""Styles by role; the values of `TokenState` are roles."""

TARGET_ROLES = frozenset({"correction", "bonus", "target"})
"""Roles of the tokens that the target chose itself."""

PLAIN = ""
"""Role of text without a style."""

THEME = Theme(ROLES)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Holds the symbols for what has no visible shape, and those that ASCII lacks."""

    newline: str = "⏎"
    tab: str = "⇥"
    space: str = "␣"
    empty: str = "·"
    """A token without text: part of a character, or a special token."""
    discarded: str = "⋯"
    """Precedes the number of drafted tokens that were not tested."""
    cut: str = "…"
    separator: str = "·"
    alpha: str = "α"
    plus_minus: str = "±"
    bar: str = "█"
    branches: str = "⋔"
    """Precedes the number of further branches of a draft."""
    branch: str = "└"
    """Precedes a branch in the drawing of a tree."""


UNICODE_GLYPHS = Glyphs()
ASCII_GLYPHS = Glyphs("\\n", "\\t", "_", ".", "+", "~", "|", "alpha", "+-", "#", "^", "`")


def glyphs(*, ascii_only: bool) -> Glyphs:
    """Returns the symbols that an output can show."""
    return ASCII_GLYPHS if ascii_only else UNICODE_GLYPHS


def mark_rejected(text: str, num_discarded: int) -> str:
    """Returns `[- dog +2-]`: a rejected token and the number discarded after it (wdiff's mark for deleted text)."""
    return f"[-{text} +{num_discarded}-]" if num_discarded else f"[-{text}-]"


def mark_target(text: str) -> str:
    """Returns `{+ fox+}`: the target's own token (wdiff's mark for inserted text).

    The leading space stays inside: removing `[-…-]` and unwrapping `{+…+}` restores the answer.
    """
    return f"{{+{text}+}}" if text else ""


def format_legend(view: ViewName, *, marks: bool, ascii_only: bool) -> Text | None:
    """Returns each state of a token as the view shows it, with marks or styles; None for a view without states."""
    accepted, target, rejected = (Text(word, word) for word in ("accepted", "target", "rejected"))
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
