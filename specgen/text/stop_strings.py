"""Finds stop strings in a text that grows token by token."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.text.detokenizer import Detokenizer


class StopHold:
    """Lets text through up to the first stop string; holds back what may be the beginning of one.

    Args:
        stops: Stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was met."""

    def feed(self, text: str) -> str:
        """Add text; returns what may be shown. After a match that is nothing."""
        if self.matched is not None or not self._stops:
            return "" if self.matched is not None else text
        whole = self._held + text
        found = [(whole.find(stop), -len(stop), stop) for stop in self._stops if stop in whole]
        if found:
            position, _, self.matched = min(found)
            self._held = ""
            return whole[:position]
        num_held = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - num_held :]
        return whole[: len(whole) - num_held]

    def release(self) -> str:
        """The text held back, when the answer ends without a match."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class StopStrings:
    """The engine's stop check: finds the token that completes a stop string.

    Args:
        detokenizer: At the place where the answer begins; this object uses it up.
        stops: Stop strings.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._hold = StopHold(stops)

    def cut(self, ids: Sequence[int]) -> int | None:
        """How many of the next ids to keep, the one that completes a stop string included; None for all."""
        for position, token_id in enumerate(ids):
            self._hold.feed(self._detokenizer.commit(token_id))
            if self._hold.matched is not None:
                return position + 1
        return None

    @property
    def matched(self) -> str | None:
        """The stop text that was met; None before."""
        return self._hold.matched
