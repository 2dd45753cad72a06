"""How long a draft gets, decided token by token. The drafter's confidence and past rounds in, yes or no out.

A policy never sees a token before it is kept: it decides whether a *further* one is drawn, from what was drawn before.
So no drawn token is ever thrown away, and the target's law stays exact.
"""

from __future__ import annotations

from typing import Protocol

from specgen.engine.costs import CostTable, DraftCost
from specgen.events import Round
from specgen.settings import LONGEST_AUTO_DRAFT

FIRST_DRAFT = 4
"""Longest draft while a draft token's cost is unknown."""

NUM_BINS = 10
PRIOR_WEIGHT = 3.0
"""Observations the first guess of an acceptance counts for."""
MEMORY = 0.99
"""Weight an observation keeps after another one came to the same bin: texts change their nature."""
SURPRISE_MEMORY = 0.95
RATE_MEMORY = 0.95
PROBE_LENGTHS = (1, 2, 4, 8)
FIRST_GAP, LONGEST_GAP = 4, 256
"""Rounds of plain decoding between two tries of a draft that did not pay."""
BENEFIT_OF_DOUBT = 0.05
"""Expected loss, in tokens a round, that still counts as paying: only a drafting drafter can show what it is worth."""


class LengthPolicy(Protocol):
    """Decides the length of each draft."""

    uses_confidence: bool
    """Whether `drew` is wanted: for a greedy draft the confidence costs a pass over the vocabulary."""

    def begin(self) -> None:
        """A round begins."""

    def wants_more(self) -> bool:
        """Whether to draft one more token."""

    def drew(self, confidence: float) -> None:
        """A token was drawn and is kept; `confidence`, 0 to 1, is how sure the drafter was of it."""

    def observe(self, round_: Round) -> None:
        """Learn from a finished round."""


class FixedLength:
    """Always the same length; the loop's limit is the only bound."""

    uses_confidence = False

    def begin(self) -> None:
        """Nothing to prepare."""

    def wants_more(self) -> bool:
        return True

    def drew(self, confidence: float) -> None:
        """Nothing to note."""

    def observe(self, round_: Round) -> None:
        """Nothing to learn."""


class Acceptance:
    """Chance that a draft token is accepted, given that those before it were, by the drafter's confidence.

    The first guess is the confidence itself; each bin is then corrected by what the target said. A bin forgets slowly,
    and a sure drafter can be wrong for a whole text (an edit it would not make): so refusals are also counted against
    those expected over the last few tokens, and the ratio scales every chance of a refusal.
    """

    def __init__(self) -> None:
        self._accepted = [0.0] * NUM_BINS
        self._tested = [0.0] * NUM_BINS
        self.mean = 0.7
        """Over all confidences: the guess for a token not drawn yet. Starts where real pairs are."""
        self._num_tested = 0
        self._refused = self._expected = 0.0

    def estimate(self, confidence: float) -> float:
        surprise = (self._refused + 3) / (self._expected + 3)
        return 1 - min((1 - self._usual(confidence)) * surprise, 1.0)

    def _usual(self, confidence: float) -> float:
        index = _bin(confidence)
        return (self._accepted[index] + PRIOR_WEIGHT * confidence) / (self._tested[index] + PRIOR_WEIGHT)

    def observe(self, confidence: float, was_accepted: bool) -> None:
        self._refused = self._refused * SURPRISE_MEMORY + (not was_accepted)
        self._expected = self._expected * SURPRISE_MEMORY + 1 - self._usual(confidence)
        index = _bin(confidence)
        self._accepted[index] = self._accepted[index] * MEMORY + was_accepted
        self._tested[index] = self._tested[index] * MEMORY + 1
        self._num_tested += 1
        # A plain mean at first, then a moving one.
        self.mean += (was_accepted - self.mean) / min(self._num_tested + PRIOR_WEIGHT, 1 / (1 - MEMORY))


def _bin(confidence: float) -> int:
    return min(int(confidence * NUM_BINS), NUM_BINS - 1)


class CostAwareLength:
    """Draws a further token if that is worth its cost at the present rate of tokens per second.

    A token at position m costs the draft's time and v(m + 1) - v(m) of the target's, and yields its chance of being
    reached and accepted. It is worth it if yield - rate * cost is positive for some number of further tokens: looking
    ahead matters where v has steps. The rate is that of the recent rounds and never below plain decoding's, so
    drafting that does not pay stops by itself; it is then tried again after growing gaps.
    Source: the renewal-reward argument of dynamic draft lengths; Liu et al. 2024 (arXiv:2406.14066) use the same
    objective per batch.

    Args:
        costs: What target passes cost; learned on, and shared between answers.
        draft_cost: What a draft token costs.
    """

    uses_confidence = True

    def __init__(self, costs: CostTable, draft_cost: DraftCost) -> None:
        self.costs = costs
        self.draft_cost = draft_cost
        self.acceptance = Acceptance()
        self._confidences: list[float] = []
        self._reach = 1.0
        self._tokens_per_second = 0.0
        self._num_plain = 0
        self._gap = FIRST_GAP
        self._is_probe = False
        self._probe_length = 0

    def begin(self) -> None:
        self._confidences = []
        self._reach = 1.0
        self._is_probe = False

    def drew(self, confidence: float) -> None:
        self._confidences.append(confidence)
        self._reach *= self.acceptance.estimate(confidence)

    def wants_more(self) -> bool:
        length = len(self._confidences)
        # The first round is a plain one: it tells what a token of the target costs, and nobody waits for a draft.
        if length >= LONGEST_AUTO_DRAFT or not self.costs.is_known(1):
            return False
        if not self.draft_cost.is_known and length >= FIRST_DRAFT:
            return False
        if self._is_probe:
            return length < self._probe_length
        if self._gain_ahead(length) > (0 if length else -BENEFIT_OF_DOUBT):
            return True
        if length == 0 and self._num_plain >= self._gap:
            self._is_probe = True
            self._probe_length = self._least_bad_length()
            return True
        return False

    def observe(self, round_: Round) -> None:
        num_drafted = len(round_.draft_ids) + round_.num_cut
        self.costs.observe(num_drafted + 1, round_.verify_seconds)
        for position, confidence in enumerate(self._confidences[: round_.num_accepted + round_.num_rejected]):
            self.acceptance.observe(confidence, position < round_.num_accepted)
        if num_drafted == 0:
            self._num_plain += 1
        else:
            # After a pause the drafter first reads what it missed; that is not the price of a token.
            if self._num_plain == 0:
                self.draft_cost.observe(num_drafted, round_.draft_seconds)
            self._space_probes()
        self._learn_rate(round_)

    def _space_probes(self) -> None:
        if not self._is_probe:
            self._gap = FIRST_GAP
        elif self._gain_ahead(0, reach=1.0) <= -BENEFIT_OF_DOUBT:
            self._gap = min(2 * self._gap, LONGEST_GAP)
        self._num_plain = 0

    def _learn_rate(self, round_: Round) -> None:
        if self._is_probe or not round_.seconds:
            return
        rate = len(round_.token_ids) / round_.seconds
        if not self._tokens_per_second:
            self._tokens_per_second = rate
        # Averaging seconds per token, not tokens per second: the mean of a ratio favours the lucky rounds.
        spt = RATE_MEMORY / self._tokens_per_second + (1 - RATE_MEMORY) / rate
        self._tokens_per_second = 1 / spt

    def _rate(self) -> float:
        plain = self.costs.seconds(1)
        return max(self._tokens_per_second, 1 / plain) if plain else self._tokens_per_second

    def _gain_ahead(self, length: int, reach: float | None = None) -> float:
        """Best of yield - rate * cost over numbers of further tokens."""
        rate, reach = self._rate(), self._reach if reach is None else reach
        here = self.costs.seconds(length + 1)
        gain, best, chance = 0.0, -1.0, reach
        for further in range(1, LONGEST_AUTO_DRAFT - length + 1):
            chance *= self.acceptance.mean
            gain += chance
            cost = further * self.draft_cost.seconds + self.costs.seconds(length + further + 1) - here
            best = max(best, gain - rate * cost)
        return best

    def _least_bad_length(self) -> int:
        """Length of a probe: where drafting would come closest to paying."""

        def loss(length: int) -> float:
            mean = self.acceptance.mean
            gain = sum(mean**position for position in range(1, length + 1))
            extra = self.costs.seconds(length + 1) - self.costs.seconds(1)
            return self._rate() * (length * self.draft_cost.seconds + extra) - gain

        return min(PROBE_LENGTHS, key=loss)
