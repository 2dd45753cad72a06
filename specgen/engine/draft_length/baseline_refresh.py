"""Schedules rounds without a draft, so that the cost of plain decoding stays known.

If every round drafts, the baseline that drafting is compared with becomes outdated. Seen with llama.cpp: a plain pass
known as 64 ms from one prompt took 55 ms in the next, which drafted to its end at 61 ms a token.
"""

from __future__ import annotations

from specgen.core.events import Round

REFRESH_INTERVAL = 20
"""Rounds with a draft after which a plain one is due; it costs the gain of one round."""
CLEAR_GAIN = 0.25
"""Above this gain, no unnoticed drift of the machine turns drafting into a loss."""
DRIFT_TOLERANCE = 0.04
"""A plain pass that differs by more than this from the known cost calls for another one."""
MAX_PLAIN_IN_A_ROW = 4
"""More than half of the samples whose median is the known cost: it has changed by then, too."""


class BaselineRefresh:
    """Counts rounds since the last one without a draft."""

    def __init__(self) -> None:
        self._num_drafting = self._num_plain = 0
        self._has_drifted = False

    def is_due(self, gain: float) -> bool:
        """Whether the next round should be plain.

        Args:
            gain: Of drafting, as a share: 0.1 for ten percent more tokens per second.
        """
        if gain >= CLEAR_GAIN:
            return False
        return self._num_drafting >= REFRESH_INTERVAL or (
            self._has_drifted and 0 < self._num_plain < MAX_PLAIN_IN_A_ROW
        )

    def observe(self, round_: Round, known_seconds: float) -> None:
        """Learns from a finished round.

        Args:
            round_: The round.
            known_seconds: Cost of a plain pass as known before the round.
        """
        if round_.draft_ids or round_.num_cut:
            self._num_drafting, self._num_plain = self._num_drafting + 1, 0
            return
        self._num_drafting, self._num_plain = 0, self._num_plain + 1
        self._has_drifted = known_seconds > 0 and abs(round_.verify_seconds / known_seconds - 1) > DRIFT_TOLERANCE
