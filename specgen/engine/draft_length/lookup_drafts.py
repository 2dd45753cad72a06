"""Chooses the length of lookup drafts: their acceptance is known beforehand, and drafting costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from specgen.core.events import Round
from specgen.engine.draft_length.acceptance import AcceptanceByMatch, LookupMatch
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.replay_cost import ReplayCost
from specgen.engine.draft_length.throughput import Throughput


@dataclass(frozen=True, slots=True)
class LookupLength:
    """The best length for a lookup draft.

    Args:
        num_tokens: The length; 0 if no length pays.
        gain: Expected tokens, less those lost in the draft's time.
        expected_tokens: Expected number of accepted tokens.
    """

    num_tokens: int = 0
    gain: float = 0.0
    expected_tokens: float = 0.0


class LookupDrafts:
    """Weighs the expected tokens of a match against the time that verifying them takes.

    Args:
        costs: The target's.
        throughput: Values the time.
        replay: Costs of tokens fed again.
    """

    def __init__(self, costs: CostTable, throughput: Throughput, replay: ReplayCost) -> None:
        self._replay = replay
        self._costs = costs
        self._throughput = throughput
        self._acceptance = AcceptanceByMatch()
        self._match: LookupMatch | None = None

    def start_text(self) -> None:
        """Forgets what is known of the last text only."""
        self._acceptance.start_text()

    def start_round(self) -> None:
        """Forgets the match of the last round."""
        self._match = None

    def note(self, match: LookupMatch) -> None:
        """Remembers the match of this round, to learn from it whether it is drafted or not."""
        self._match = match

    def best_length(self, match: LookupMatch, seconds: Callable[[int], float]) -> LookupLength:
        """Returns the length with the largest gain.

        Args:
            match: The draft.
            seconds: Cost of a target pass over n tokens: `ReplayCost.pass_seconds`, or its optimistic one for a trial.
        """
        rate, plain_seconds = self._throughput.rate, seconds(1)
        best, expected = LookupLength(), 0.0
        estimates = self._acceptance.estimates(match)[: self._costs.longest_trial]
        for length, reach in enumerate(accumulate(estimates, mul), 1):
            expected += reach
            rejection = (1 - reach) * self._replay.rejection_seconds(expected)
            gain = expected - rate * (seconds(length + 1) - plain_seconds + rejection)
            if gain > best.gain:
                best = LookupLength(length, gain, expected)
        return best

    def loss(self, length: int) -> float:
        """Returns the tokens of plain decoding that a rejected draft of this length loses."""
        return (self._replay.pass_seconds(length + 1) - self._replay.pass_seconds(1)) / self._costs.seconds(1)

    def observe(self, round_: Round) -> None:
        """Learns from a finished round."""
        if self._match is not None:
            self._acceptance.observe(self._match, round_.token_ids)
