"""Defines the protocol of views, and styles the pieces of a round for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Protocol

from specgen.core.events import Piece, RoundText, TextEvent
from specgen.render.styled_writer import StyledText
from specgen.render.theme import TARGET_ROLES, Glyphs, mark_target

Sanitizer = Callable[[str], str]
"""Function that makes model text safe before it is shown."""


class View(Protocol):
    """Shows a generation in progress."""

    def show(self, event: TextEvent) -> None:
        """Shows one event; a round takes one write and one flush.

        Raises:
            BrokenPipeError: The reader closed the pipe.
            OutputError: Any other write error.
        """

    def close(self) -> None:
        """Resets the stream and ends the line. Can be called again, and after a failure."""


def unchanged(text: str) -> str:
    """Returns the text as it is: the sanitizer for trusted output."""
    return text


def kept_parts(round_text: RoundText, sanitizer: Sanitizer, *, marks: bool) -> list[StyledText]:
    """Returns the kept text of a round, one part for each run of tokens with the same state."""
    return style_pieces([piece for piece in round_text.pieces if piece.state.is_kept], sanitizer, marks=marks)


def style_pieces(kept: list[Piece], sanitizer: Sanitizer, *, marks: bool) -> list[StyledText]:
    """Returns kept pieces as styled text; `marks` wraps the target's own tokens, for streams without styles."""
    parts: list[StyledText] = []
    for state, run in groupby(kept, key=lambda piece: piece.state):
        text = sanitizer("".join(piece.text for piece in run))
        parts.append((state, mark_target(text) if marks and state in TARGET_ROLES else text))
    return parts


def visible_text(text: str, glyphs: Glyphs) -> str:
    """Returns the safe text of a token with visible newlines; `·` if it has no text."""
    return text.replace("\n", glyphs.newline) or glyphs.empty
