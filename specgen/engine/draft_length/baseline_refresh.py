"""Rounds in, whether the next one should be plain out: what a token costs without a draft has to stay known.

Where every round drafts, the figure that drafting is held against grows old. Seen with llama.cpp: a plain pass known as
64 ms from one prompt took 55 ms in the next, which drafted to its end at 61 ms a token.
"""

from __future__ import annotations

from specgen.core.events import Round

EVERY = 20
"""Drafting rounds behind which a plain one is due; it costs the gain of one round."""
CLEAR_GAIN = 0.25
"""Where drafting gains more than that, no drift that happens unnoticed turns it into a loss."""
MOVED = 0.04
"""A plain pass this far from what was known calls for another one."""
MOST_IN_A_ROW = 4
"""More than half of the samples whose median is the known figure: then it has moved, too."""


class BaselineRefresh:
    """Counts rounds since the last plain one."""

    def __init__(self) -> None:
        self._num_drafting = self._num_plain = 0
        self._has_moved = False

    def is_due(self, gain: float) -> bool:
        """Whether the next round should be plain.

        Args:
            gain: Of drafting, as a share: 0.1 for ten percent more tokens per second.
        """
        if gain >= CLEAR_GAIN:
            return False
        return self._num_drafting >= EVERY or (self._has_moved and 0 < self._num_plain < MOST_IN_A_ROW)

    def observe(self, round_: Round, known_seconds: float) -> None:
        """Learn from a finished round.

        Args:
            round_: The round.
            known_seconds: What a plain pass was thought to cost before it.
        """
        if round_.draft_ids or round_.num_cut:
            self._num_drafting, self._num_plain = self._num_drafting + 1, 0
            return
        self._num_drafting, self._num_plain = 0, self._num_plain + 1
        self._has_moved = known_seconds > 0 and abs(round_.verify_seconds / known_seconds - 1) > MOVED
