"""Keeps in one style what a terminal draws as one character: a letter and its accents, an emoji and its parts.

Tokens may end inside such a grapheme cluster (Unicode Standard Annex 29). A style that changes there takes the cluster
apart on some terminals, so the style of its beginning continues to its end.
"""

from __future__ import annotations

from itertools import islice

from wcwidth import iter_graphemes

from specgen.render.theme import PLAIN
from specgen.render.writers import StyledText

_BASE = "\u25cc"
"""Dotted circle: Unicode's stand-in for the letter that a combining mark lacks."""


_MAX_CHARACTERS = 64
"""Longest cluster: it is examined again with every token, and a model may write accents without end."""


class ClusterStyle:
    """Follows kept text and the style of its last cluster."""

    def __init__(self) -> None:
        self.cluster = ""
        self._role = PLAIN

    def parts(self, role: str, text: str) -> tuple[StyledText, StyledText]:
        """Divides the next text into the rest of the cluster before it, in that cluster's style, and all else.

        Args:
            role: Style of the text.
            text: Safe text.
        """
        num_joined = _num_joined(self.cluster, text)
        joined = self._role, text[:num_joined]
        for cluster in iter_graphemes(self.cluster + text):
            self.cluster = cluster[-_MAX_CHARACTERS:]
        if num_joined < len(text):
            self._role = role
        return joined, (role, text[num_joined:])


def standing_alone(before: str, text: str) -> str:
    """Returns a text so that its first character is not drawn over the last one before it."""
    return _BASE + text if _num_joined(before, text) else text


def _num_joined(cluster: str, text: str) -> int:
    first = "".join(islice(iter_graphemes(cluster + text), 1)) if cluster and text else cluster
    return max(0, len(first) - len(cluster))
