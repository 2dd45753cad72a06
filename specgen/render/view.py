"""Defines the protocol of views, and what the views of styled text share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Protocol

from rich.console import Console

from specgen.core.events import FinalText, Piece, RoundText, ServedText, TextEvent
from specgen.render.clusters import ClusterStyle, standing_alone
from specgen.render.theme import PLAIN, TARGET_ROLES, mark_target
from specgen.render.writers import StyledText, StyledWriter

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


class StyledView:
    """Writes styled text; its subclasses decide how a round looks.

    Args:
        console: From `make_console`. On a stream without styles, marks show the states.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._writer = StyledWriter(console)
        self._sanitizer = sanitizer
        self._clusters = ClusterStyle()

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._writer.write(self._round_parts(event))
        elif isinstance(event, ServedText):
            self._writer.write(self._served_parts(event))
        elif isinstance(event, FinalText):
            self._writer.write(self._final_parts(event))

    def close(self) -> None:
        self._writer.finish()

    def _round_parts(self, round_text: RoundText) -> list[StyledText]:
        raise NotImplementedError

    def _final_parts(self, final: FinalText) -> list[StyledText]:
        return list(self._clusters.parts(PLAIN, self._sanitizer(final.text)))

    def _kept_parts(
        self, pieces: Iterable[Piece], *, marks: bool, before_own: Iterable[StyledText] = ()
    ) -> list[StyledText]:
        """Returns the kept ones of the pieces, one part for each run of tokens with the same state.

        Args:
            marks: Marks show the states.
            before_own: Goes before the target's own token, after the cluster that it may continue.
        """
        parts: list[StyledText] = []
        for state, run in groupby((piece for piece in pieces if piece.state.is_kept), key=lambda piece: piece.state):
            joined, rest = self._clusters.parts(state, self._sanitizer("".join(piece.text for piece in run)))
            parts.append(joined)
            if state in TARGET_ROLES:
                parts += before_own
                before_own = ()
                rest = state, mark_target(rest[1]) if marks else rest[1]
            parts.append(rest)
        return [*parts, *before_own]

    def _served_parts(self, piece: ServedText) -> list[StyledText]:
        text = self._sanitizer(piece.text)
        is_marked = piece.state in TARGET_ROLES and not self._writer.has_styles
        return [(piece.state or PLAIN, mark_target(text) if is_marked else text)]

    def _visible(self, piece_text: str) -> str:
        """Returns the safe text of a token with visible newlines; `·` if it has no text."""
        glyphs = self._writer.glyphs
        text = self._sanitizer(piece_text).replace("\n", glyphs.newline) or glyphs.empty
        return standing_alone(self._clusters.cluster or " ", text)
