"""Lays out blocks of labelled lines, and wraps them at words."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

LABEL_CELLS = 9


def labelled(label: str, value: str) -> Text:
    """Returns a line of a block: the label in its column, then the value."""
    return Text().append(f"{label:<{LABEL_CELLS}}", "label").append(value)


def fit_block(block: Text, console: Console) -> Text:
    """Wraps lines made by `labelled` for a terminal; elsewhere each stays on one line, for grep."""
    return wrap_block(block, console.width) if console.is_terminal else block


def wrap_block(block: Text, width: int) -> Text:
    """Wraps lines made by `labelled` at words, and indents their continuation lines by the width of the label."""
    lines = []
    for line in block.split("\n", allow_blank=True):
        pieces = wrap_words(line[LABEL_CELLS:], width - LABEL_CELLS)
        lines.append(line[:LABEL_CELLS].append_text(Text(f"\n{'':{LABEL_CELLS}}").join(pieces)))
    return Text("\n").join(lines)


def wrap_words(text: Text, width: int) -> list[Text]:
    """Splits a line at spaces, but not at no-break spaces, into lines of at most `width` cells.

    A word that is wider, such as a path, stays whole, so that it can be copied.
    """
    breaks, used = [], 0
    for word in re.finditer("[^ ]+ *", text.plain):
        if used and used + cell_len(word[0].rstrip(" ")) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    pieces = list(text.divide(breaks))
    for piece in pieces[:-1]:
        piece.rstrip()
    return pieces
