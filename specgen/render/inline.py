"""Shows the answer append-only, with each rejected draft token struck out in its place."""

from __future__ import annotations

from rich.console import Console

from specgen.core.events import FinalText, RoundText, TextEvent, TokenState
from specgen.render.styled_writer import StyledText, StyledWriter
from specgen.render.theme import PLAIN, mark_rejected
from specgen.render.view import Sanitizer, style_pieces, visible_text


class InlineView:
    """Shows accepted tokens, the rejected token struck out, `⋯n` for n discarded, then the target's own token.

    Args:
        console: From `make_console`. Without styles, wdiff marks show the states.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._writer = StyledWriter(console)
        self._sanitizer = sanitizer

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._writer.write(self._parts(event))
        elif isinstance(event, FinalText):
            self._writer.write([(PLAIN, self._sanitizer(event.text))])

    def close(self) -> None:
        self._writer.finish()

    def _parts(self, round_text: RoundText) -> list[StyledText]:
        marks = not self._writer.has_styles
        accepted = [piece for piece in round_text.pieces if piece.state is TokenState.ACCEPTED]
        own = [piece for piece in round_text.pieces if piece.state.is_kept and piece.state is not TokenState.ACCEPTED]
        return [
            *style_pieces(accepted, self._sanitizer, marks=marks),
            *self._rejected_parts(round_text, marks=marks),
            *style_pieces(own, self._sanitizer, marks=marks),
        ]

    def _rejected_parts(self, round_text: RoundText, *, marks: bool) -> list[StyledText]:
        rejected = [piece for piece in round_text.pieces if piece.state is TokenState.REJECTED]
        if not rejected:
            return []
        glyphs = self._writer.glyphs
        num_discarded = sum(piece.state is TokenState.DISCARDED for piece in round_text.pieces)
        text = "".join(visible_text(self._sanitizer(piece.text), glyphs) for piece in rejected)
        if marks:
            return [(PLAIN, mark_rejected(text, num_discarded))]
        count = f"{glyphs.discarded}{num_discarded}" if num_discarded else ""
        return [("rejected", text), ("discarded", count)]
