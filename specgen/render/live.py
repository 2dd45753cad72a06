"""Text events in; kept text, and behind it the round's refused draft until the next event takes it away, out.

Kept text is printed once, as plain streaming would. Only the rest of the current row is ever erased, and only while
its column is certain: otherwise a committed character could go with it.
"""

from __future__ import annotations

from rich.console import Console

from specgen.core.events import FinalText, Notice, RoundText, TextEvent
from specgen.render.styled_writer import StyledText, StyledWriter
from specgen.render.text_width import Column, cut_to_cells
from specgen.render.theme import PLAIN
from specgen.render.view import Sanitizer, flat, kept_parts

MIN_WIDTH = 20
"""Below this a tail would be all there is to see."""
MIN_TAIL_CELLS = 4
"""At the end of a row the cursor waits to wrap, and erasing there takes a committed character."""

_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"
_SAVE, _RESTORE_AND_ERASE = "\x1b7", "\x1b8\x1b[K"


class LiveView:
    """Kept text with a dim, one-row, erasable tail of what the round proposed in vain.

    Starts at column 0. Without styles there is no tail, and kept text comes without marks.

    Args:
        console: From `make_console`.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._pen = StyledWriter(console)
        self._sanitizer = sanitizer
        self._column = Column()
        self._size = self._pen.size()
        self._has_tail = False

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._print(kept_parts(event, self._sanitizer, marks=False), self._draft(event))
        elif isinstance(event, FinalText):
            self._print([(PLAIN, self._sanitizer(event.text))], "")
        elif isinstance(event, Notice):
            self._print([], "")
            # Somebody will print the notice on the same terminal.
            self._column.lose()

    def close(self) -> None:
        self._pen.finish(before=self._erase())

    def _print(self, parts: list[StyledText], draft: str) -> None:
        size = self._pen.size()
        before = self._erase()
        if size != self._size:
            self._size = size
            self._column.lose()
        for _, text in parts:
            self._column.advance(text, size[0])
        self._pen.write(parts, before=before, after=self._tail(draft))

    def _draft(self, round_text: RoundText) -> str:
        glyphs = self._pen.glyphs
        refused = (piece for piece in round_text.pieces if not piece.state.is_kept)
        return "".join(flat(self._sanitizer(piece.text), glyphs) for piece in refused).replace("\t", " ")

    def _tail(self, draft: str) -> str:
        width = self._size[0]
        remaining = self._column.remaining(width)
        if not self._pen.can_move_cursor() or width < MIN_WIDTH or remaining < MIN_TAIL_CELLS:
            return ""
        shown = cut_to_cells(draft, remaining, self._pen.glyphs.cut)
        if not shown:
            return ""
        self._has_tail = True
        return f"{_SAVE}{_WRAP_OFF}{self._pen.paint('pending', shown)}{_WRAP_ON}"

    def _erase(self) -> str:
        if not self._has_tail:
            return ""
        self._has_tail = False
        # After a resize the saved position may lie in committed text: leave the tail standing and start a new row.
        # Wrapping is switched on again in case a signal cut the tail's own write short.
        return _WRAP_ON + (_RESTORE_AND_ERASE if self._pen.size() == self._size else "\n")
