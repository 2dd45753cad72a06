"""Text events in; kept text out, the draft's tokens and the target's own told apart. No draft is shown."""

from __future__ import annotations

from rich.console import Console

from specgen.core.events import FinalText, RoundText, TextEvent
from specgen.render.styled_writer import StyledWriter
from specgen.render.theme import PLAIN
from specgen.render.view import Sanitizer, kept_parts


class TextView:
    """The answer alone, styled: easy to read and to copy.

    Args:
        console: From `make_console`. Without styles the target's own tokens are marked `{+…+}`.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._pen = StyledWriter(console)
        self._sanitizer = sanitizer

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._pen.write(kept_parts(event, self._sanitizer, marks=not self._pen.has_styles))
        elif isinstance(event, FinalText):
            self._pen.write([(PLAIN, self._sanitizer(event.text))])

    def close(self) -> None:
        self._pen.finish()
