"""Computes the width of text in terminal cells, and follows the column of the cursor.

Terminals disagree about the width of symbols, combining marks, joined emoji and East-Asian ambiguous characters. A view
that rewrites a row must know whether the cursor's column is certain.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from rich.cells import cell_len

_TAB_CELLS = 8
_LAST_ALPHABETIC = 0x052F
"""End of Latin, Greek and Cyrillic, whose letters take one cell unless Unicode calls them ambiguous."""
_WIDE_RANGES = ((0x3000, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF01, 0xFF60))
"""CJK punctuation, kana, ideographs, Hangul syllables and full-width forms: two cells on all terminals."""
_JOINING_RANGES = ((0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF))
"""Regional indicators and skin tones, which may combine with the preceding character."""


def _is_in(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


@lru_cache(maxsize=4096)
def certain_width(character: str) -> int | None:
    """Returns the cells of a printable character if all terminals agree, else None."""
    code = ord(character)
    if 0x20 <= code <= 0x7E:
        return 1
    width = unicodedata.east_asian_width(character)
    is_text = unicodedata.category(character)[0] in "LNPZ"
    if code <= _LAST_ALPHABETIC:
        return 1 if is_text and width in ("N", "Na") else None
    return 2 if is_text and width in ("W", "F") and _is_in(code, _WIDE_RANGES) else None


def _is_separate(character: str) -> bool:
    """Returns whether the character can't change the preceding cell."""
    code = ord(character)
    return (
        unicodedata.category(character)[0] in "LNPSZ" and cell_len(character) >= 1 and not _is_in(code, _JOINING_RANGES)
    )


def cut_to_cells(text: str, num_cells: int, cut: str) -> str:
    """Returns the beginning of a line of text that fits into `num_cells`, followed by `cut` if the rest is omitted.

    Also ends before a character that may combine with the preceding one: on the screen, that could be kept text.
    """
    kept: list[str] = []
    used = 0
    for index, character in enumerate(text):
        width = cell_len(character)
        is_last = index == len(text) - 1
        if not _is_separate(character) or used + width + (0 if is_last else len(cut)) > num_cells:
            return "".join((*kept, cut)) if kept else ""
        kept.append(character)
        used += width
    return "".join(kept)


class CursorColumn:
    """Follows the column of a terminal's cursor through everything printed since column 0."""

    def __init__(self) -> None:
        self._column: int | None = 0

    def remaining(self, width: int) -> int:
        """Returns the cells left in the row; 0 if the column is uncertain."""
        return 0 if self._column is None else max(width - self._column, 0)

    def invalidate(self) -> None:
        """Makes the column uncertain until the next newline."""
        self._column = None

    def advance(self, text: str, width: int) -> None:
        """Updates the column for printed text on a terminal of `width` cells."""
        line_break = text.rfind("\n")
        if line_break >= 0:
            self._column = 0
            text = text[line_break + 1 :]
        for character in text:
            if self._column is None:
                return
            self._column = _column_after(character, self._column, width)


def _column_after(character: str, column: int, width: int) -> int | None:
    if character == "\t":
        stop = (column // _TAB_CELLS + 1) * _TAB_CELLS
        return stop if stop < width else None
    cells = certain_width(character)
    if cells is None:
        return None
    if column >= width:
        return cells
    # A wide character at the last cell wraps on some terminals and stays on the row on others.
    return column + cells if column + cells <= width else None
