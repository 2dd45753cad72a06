"""Roles of text in, styles, marks and glyphs out. The only place that knows what accepted or rejected looks like.

Three states, three shapes and three colours: the picture survives NO_COLOR and any kind of colour vision.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.theme import Theme

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
"""Role names, the values of `TokenState` among them."""

TARGET_ROLES = frozenset({"correction", "bonus", "target"})
"""Tokens of the target's own."""

PLAIN = ""
"""Role of text that has no style."""

THEME = Theme(ROLES)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs for what has no shape of its own.

    Args:
        newline: A newline of a draft that was not kept.
        tab: A tab, where columns matter.
        space: A space, where tokens are shown apart.
        empty: A token without text: half a character, or a special token.
        discarded: Before the number of drafted tokens that were never tested.
        cut: Text was left out here.
        separator: Between figures on one line.
        alpha: The acceptance rate among tested tokens.
        plus_minus: Before half of an interval.
        bar: What bars of a chart are made of.
    """

    newline: str
    tab: str
    space: str
    empty: str
    discarded: str
    cut: str
    separator: str
    alpha: str
    plus_minus: str
    bar: str


UNICODE_GLYPHS = Glyphs("⏎", "⇥", "␣", "·", "⋯", "…", "·", "α", "±", "█")
ASCII_GLYPHS = Glyphs("\\n", "\\t", "_", ".", "+", "~", "|", "alpha", "+-", "#")


def glyphs(*, ascii_only: bool) -> Glyphs:
    """Signs for an output, by what its encoding can show."""
    return ASCII_GLYPHS if ascii_only else UNICODE_GLYPHS


def mark_rejected(text: str, num_discarded: int) -> str:
    """`[- dog +2-]`: a refused token and how many were discarded behind it (wdiff's mark for deleted text)."""
    return f"[-{text} +{num_discarded}-]" if num_discarded else f"[-{text}-]"


def mark_target(text: str) -> str:
    """`{+ fox+}`: the target's own token (wdiff's mark for inserted text).

    The piece's own leading space stays inside: removing `[-…-]` and unwrapping `{+…+}` gives the answer back.
    """
    return f"{{+{text}+}}" if text else ""
