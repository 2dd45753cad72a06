"""Shows one line per round: its counts, its time and its tokens one by one.

#12    3/5    31 ms  ␣The ␣quick ␣brown | -␣dog -␣and -␣cat | +␣fox
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from specgen.core.events import FinalText, Piece, RoundText, TextEvent, TokenState
from specgen.render.styled_writer import StyledText, StyledWriter
from specgen.render.theme import PLAIN
from specgen.render.view import Sanitizer, visible_text

_PREFIXES = {TokenState.ACCEPTED: "", TokenState.REJECTED: "-", TokenState.DISCARDED: "-"}
_TARGET_PREFIX = "+"


class StepsView:
    """Shows one line per round: accepted tokens, rejected and discarded ones (`-`), the target's own (`+`).

    Lines are not cut. The prefixes show the states, so a stream without styles needs no other marks.

    Args:
        console: From `make_console`.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._writer = StyledWriter(console)
        self._sanitizer = sanitizer

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._writer.write([("muted", _head(event)), *self._sections(event), (PLAIN, "\n")])
        elif isinstance(event, FinalText):
            head = f"end  {event.finish.reason}"
            text = [(PLAIN, "  " + self._visible(event.text))] if event.text else []
            self._writer.write([("muted", head), *text, (PLAIN, "\n")])

    def close(self) -> None:
        self._writer.finish()

    def _sections(self, round_text: RoundText) -> list[StyledText]:
        pieces = round_text.pieces
        sections = (
            [piece for piece in pieces if piece.state is TokenState.ACCEPTED],
            [piece for piece in pieces if not piece.state.is_kept],
            [piece for piece in pieces if piece.state.is_kept and piece.state is not TokenState.ACCEPTED],
        )
        parts: list[StyledText] = []
        for section in filter(None, sections):
            parts.append(("muted", " | ") if parts else (PLAIN, "  "))
            parts.extend(self._tokens(section))
        return parts

    def _tokens(self, pieces: Iterable[Piece]) -> Iterable[StyledText]:
        for index, piece in enumerate(pieces):
            if index:
                yield PLAIN, " "
            yield piece.state, _PREFIXES.get(piece.state, _TARGET_PREFIX) + self._visible(piece.text)

    def _visible(self, text: str) -> str:
        glyphs = self._writer.glyphs
        return visible_text(self._sanitizer(text), glyphs).replace(" ", glyphs.space).replace("\t", glyphs.tab)


def _head(round_text: RoundText) -> str:
    round_ = round_text.round
    kept = f"{round_.num_accepted}/{len(round_.draft_ids)}"
    milliseconds = round_.seconds * 1000
    time = f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    return f"#{round_.index:<4}{kept:>5}{time:>8}"
