"""What every view is: text events in, something to look at out. And the parts of a round that views share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Protocol

from specgen.core.events import Piece, RoundText, TextEvent
from specgen.render.styled_writer import StyledText
from specgen.render.theme import TARGET_ROLES, Glyphs, mark_target

Sanitizer = Callable[[str], str]
"""What model text goes through before it is shown."""


class View(Protocol):
    """Shows a generation while it happens."""

    def show(self, event: TextEvent) -> None:
        """Show one event: one write and one flush for a round.

        Raises:
            BrokenPipeError: The reader is gone.
            OutputError: Any other failure to write.
        """

    def close(self) -> None:
        """Leave the stream sane and end the line. Can be called again, and after a failure."""


def unchanged(text: str) -> str:
    """The sanitizer that trusts."""
    return text


def kept_parts(round_text: RoundText, sanitizer: Sanitizer, *, marks: bool) -> list[StyledText]:
    """The kept text of a round, one part for each run of tokens with the same fate."""
    return parts_of([piece for piece in round_text.pieces if piece.state.is_kept], sanitizer, marks=marks)


def parts_of(kept: list[Piece], sanitizer: Sanitizer, *, marks: bool) -> list[StyledText]:
    """Kept pieces as parts; `marks` wraps the target's own tokens, for streams without styles."""
    parts: list[StyledText] = []
    for state, run in groupby(kept, key=lambda piece: piece.state):
        text = sanitizer("".join(piece.text for piece in run))
        parts.append((state, mark_target(text) if marks and state in TARGET_ROLES else text))
    return parts


def flat(text: str, glyphs: Glyphs) -> str:
    """Safe text of a token that must not start a new row; `·` if it has none."""
    return text.replace("\n", glyphs.newline) or glyphs.empty
