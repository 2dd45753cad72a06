"""Shows the kept text, with accepted tokens and the target's own in different styles. Rejected drafts are not shown."""

from __future__ import annotations

from rich.console import Console

from specgen.core.events import FinalText, RoundText, TextEvent
from specgen.render.styled_writer import StyledWriter
from specgen.render.theme import PLAIN
from specgen.render.view import Sanitizer, kept_parts


class TextView:
    """Shows the styled answer only: easy to read and to copy.

    Args:
        console: From `make_console`. Without styles, the target's own tokens are marked `{+…+}`.
        sanitizer: Applied to all model text.
    """

    def __init__(self, console: Console, sanitizer: Sanitizer) -> None:
        self._writer = StyledWriter(console)
        self._sanitizer = sanitizer

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._writer.write(kept_parts(event, self._sanitizer, marks=not self._writer.has_styles))
        elif isinstance(event, FinalText):
            self._writer.write([(PLAIN, self._sanitizer(event.text))])

    def close(self) -> None:
        self._writer.finish()
