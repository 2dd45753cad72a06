"""Shows kept text, and after it the rejected draft of the round until the next event erases it.

Kept text is printed once, as in plain streaming. Only the rest of the current row is ever erased, and only while the
cursor's column is certain: otherwise kept text could be erased too.
"""

from __future__ import annotations

from rich.console import Console

from specgen.core.events import FinalText, Notice, RoundText, ServedText, TextEvent
from specgen.render.text_width import CursorColumn, cut_to_cells
from specgen.render.theme import PLAIN
from specgen.render.view import Sanitizer, StyledView
from specgen.render.writers import StyledText

MIN_WIDTH = 20
"""Columns; on a narrower terminal the tail would hide the answer."""
MIN_TAIL_CELLS = 4
"""At the end of a row the cursor waits to wrap, and erasing there would erase a kept character."""

_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"
_SAVE, _RESTORE_AND_ERASE = "\x1b7", "\x1b8\x1b[K"


class LiveView(StyledView):
    """Shows kept text, followed by a dim tail on the same row: the draft tokens that the round rejected.

    Starts at column 0. Without styles there is no tail, and kept text has no marks.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        super().__init__(console, sanitizer)
        self._column = CursorColumn()
        self._size = self._writer.size()
        self._has_tail = False

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            rejected = (self._visible(piece.text) for piece in event.pieces if not piece.state.is_kept)
            self._print(self._kept_parts(event.pieces, marks=False), "".join(rejected).replace("\t", " "))
        elif isinstance(event, ServedText):
            self._print([(event.state or PLAIN, self._sanitizer(event.text))], "")
        elif isinstance(event, FinalText):
            self._print(self._final_parts(event), "")
        elif isinstance(event, Notice):
            self._print([], "")
            # The notice will be printed on the same terminal.
            self._column.invalidate()

    def close(self) -> None:
        self._writer.finish(before=self._erase())

    def _print(self, parts: list[StyledText], draft: str) -> None:
        size = self._writer.size()
        before = self._erase()
        if size != self._size:
            self._size = size
            self._column.invalidate()
        for _, text in parts:
            self._column.advance(text, size[0])
        self._writer.write(parts, before=before, after=self._tail(draft))

    def _tail(self, draft: str) -> str:
        width = self._size[0]
        remaining = self._column.remaining(width)
        if not self._writer.can_move_cursor() or width < MIN_WIDTH or remaining < MIN_TAIL_CELLS:
            return ""
        tail = cut_to_cells(draft, remaining, self._writer.glyphs.cut)
        if not tail:
            return ""
        self._has_tail = True
        return f"{_SAVE}{_WRAP_OFF}{self._writer.paint('pending', tail)}{_WRAP_ON}"

    def _erase(self) -> str:
        if not self._has_tail:
            return ""
        self._has_tail = False
        # After a resize the saved position may be inside kept text: leave the tail and start a new row. Wrapping is
        # switched on again in case a signal interrupted the write of the tail.
        return _WRAP_ON + (_RESTORE_AND_ERASE if self._writer.size() == self._size else "\n")
