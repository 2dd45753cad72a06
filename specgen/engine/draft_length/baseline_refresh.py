"""Schedules rounds without a draft, so that the cost of plain decoding stays known.

If every round drafts, the baseline that drafting is compared with becomes outdated. Seen with llama.cpp: a plain pass
known as 64 ms from one prompt took 55 ms in the next, which drafted to its end at 61 ms a token.
"""

from __future__ import annotations

from specgen.core.events import Round

REFRESH_INTERVAL = 20
"""Rounds with a draft after which a plain one is due; it costs the gain of one round."""
SHORTEST_INTERVAL = 6
REFRESH_SHARE = 0.01
"""Share of the time that plain rounds may cost. Where drafting gains little, they cost little and are more frequent."""
CLEAR_GAIN = 0.25
"""Above this gain, no unnoticed drift of the machine turns drafting into a loss."""


class BaselineRefresh:
    """Counts rounds since the last one without a draft."""

    def __init__(self) -> None:
        self._num_drafting = 0

    def is_due(self, gain: float) -> bool:
        """Returns whether the next round should be plain.

        Args:
            gain: Of drafting, as a share: 0.1 for ten percent more tokens per second.
        """
        interval = min(max(gain / REFRESH_SHARE, SHORTEST_INTERVAL), REFRESH_INTERVAL)
        return gain < CLEAR_GAIN and self._num_drafting >= interval

    def observe(self, round_: Round) -> None:
        """Counts a finished round."""
        has_draft = bool(round_.draft_ids or round_.num_cut)
        self._num_drafting = self._num_drafting + 1 if has_draft else 0
