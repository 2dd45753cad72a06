"""Learns what a further token costs in a pass of a draft model over several branches of a tree."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

INITIAL_SHARE = 0.1
"""Assumed cost of a further token before rounds show it: low, so that trees get tried."""
NUM_ROUNDS = 24
"""Rounds that are compared with each other."""
SMALLEST_DIFFERENCE = 0.25
"""Two rounds are compared if their passes differ by this many tokens on average; others differ by chance."""
NUM_PAIRS = 10
"""Pairs of rounds before their median counts."""


class RowCost:
    """Cost of a further token of a pass, as a share of a pass over one token.

    Only the time of all passes of a round is known, and the tokens of each of them. The time of a pass is taken as a
    line in its tokens, so a round's mean time of a pass is the same line in the mean tokens of its passes. Its slope is
    the median slope over pairs of rounds (Theil 1950; Sen 1968, JASA 63, p. 1379): a few disturbed rounds don't count.

    Args:
        share: From an earlier run.
    """

    def __init__(self, share: float | None = None) -> None:
        self.share = INITIAL_SHARE if share is None else share
        """The cost by now."""
        self.is_measured = False
        """Whether this run measured it."""
        self.is_supported = share is not None
        """Whether it was measured, now or in an earlier run."""
        self._rounds: deque[tuple[float, float]] = deque(maxlen=NUM_ROUNDS)
        """Further tokens of a pass and its seconds, averaged over the passes of each round."""

    def passes(self, pass_rows: Iterable[int]) -> float:
        """Returns how many passes over one token cost as much as passes over these numbers of tokens."""
        return sum(1 + self.share * (num_rows - 1) for num_rows in pass_rows)

    def observe(self, pass_rows: Sequence[int], seconds: float) -> None:
        """Learns from the passes of a round; a round that does not know them teaches nothing."""
        if not pass_rows:
            return
        num_passes = len(pass_rows)
        self._rounds.append(((sum(pass_rows) - num_passes) / num_passes, seconds / num_passes))
        slopes = [
            (last[1] - first[1]) / (last[0] - first[0])
            for first, last in combinations(self._rounds, 2)
            if abs(last[0] - first[0]) >= SMALLEST_DIFFERENCE
        ]
        if len(slopes) < NUM_PAIRS:
            return
        slope = max(median(slopes), 0.0)
        one = median(seconds - slope * further for further, seconds in self._rounds)
        # A pass over two tokens costs no more than two passes.
        self.share = min(slope / one, 1.0) if one > 0 else 1.0
        self.is_measured = self.is_supported = True
