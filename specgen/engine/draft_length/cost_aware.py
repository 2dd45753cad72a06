"""How long a draft gets, decided token by token. The drafter's confidence and past rounds in, yes or no out.

A policy never sees a token before it is kept: it decides whether a *further* one is drawn, from what was drawn before.
So no drawn token is ever thrown away, and the target's law stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

from specgen.core.events import Round
from specgen.core.settings import LONGEST_AUTO_DRAFT
from specgen.engine.draft_length.acceptance import (
    Acceptance,
    DraftModelStats,
    LookupMatch,
    MatchAcceptance,
    RecentRounds,
)
from specgen.engine.draft_length.baseline_refresh import BaselineRefresh
from specgen.engine.draft_length.cost_table import CostTable, DraftCost

FIRST_DRAFT = 1
"""Longest draft while a draft token's cost is unknown."""

RATE_STEP = 0.05
"""Weight of the latest round in the rate."""
PROBE_LENGTHS = (1, 3, 4, 5, 7)
"""Not 2: in float32 a pass over three tokens was measured dearer than one over four, and whoever has paid for it hopes
for nothing cheaper behind it."""
FIRST_EXPLORATION_BUDGET, LARGEST_EXPLORATION_BUDGET = 1.5, 4.0
"""Tokens that tries of a draft that does not pay may cost: at first, and at most."""
EXPLORATION_SHARE = 0.01
"""What is added to that with each token written: tries cost about this share of the time, however bad the draft."""
MARGIN = 0.5
"""Tokens by which an offer must be worth more than the model's draft: where a match is good, the model is, too."""
BENEFIT_OF_DOUBT = 0.05
"""Expected loss, in tokens a round, that still counts as paying: only a drafting drafter can show what it is worth."""


class CostAwareLength:
    """Draws a further token if that is worth its cost at the present rate of tokens per second.

    A token at position m costs the draft's time and v(m + 1) - v(m) of the target's, and yields its chance of being
    reached and accepted. It is worth it if yield - rate * cost is positive for some number of further tokens: looking
    ahead matters where v has steps. The rate is that of the recent rounds and never below plain decoding's, so
    drafting that does not pay stops by itself; tries of it are paid from an allowance. Of an offer all chances are
    known beforehand, so the best length is; it goes before a draft model if its yield - rate * cost is the larger.
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
        self.matches = MatchAcceptance()
        self._confidences: list[float] = []
        self._offer: LookupMatch | None = None
        self._reach = 1.0
        self._recent = RecentRounds(RATE_STEP)
        """Those that were no tries."""
        self._exploration_budget = FIRST_EXPLORATION_BUDGET
        self._is_probe = False
        self._probe_length, self._probe_yield = 0, 0.0
        self._worth = DraftModelStats()
        self._plain_checks = BaselineRefresh()

    def start_round(self) -> None:
        self._confidences = []
        self._offer = None
        self._reach = 1.0
        self._is_probe = False

    def on_token(self, confidence: float) -> None:
        self._confidences.append(confidence)
        self._reach *= self.acceptance.estimate(confidence)

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        self._offer = match
        if not self.costs.is_supported(1):
            return 0
        chances = self.matches.chances(match)[: self._longest_to_try()]
        best, gain = self._best_length(chances, self.costs.seconds)
        if not best and self._exploration_budget >= 1:
            # What longer passes cost is not known: it may be little.
            best, gain = self._best_length(chances, self.costs.optimistic_seconds)
            self._is_probe = best > 0
            self._probe_yield = sum(accumulate(chances[:best], mul))
        if best and has_draft_model and not self._beats_the_model(gain, sum(accumulate(chances[:best], mul)) + 1):
            self._is_probe = False
            return 0
        return best

    def _best_length(self, chances: Sequence[float], seconds: Callable[[int], float]) -> tuple[int, float]:
        """The length of an offer that is worth most, and what: tokens less those lost in its time; 0 if none pays."""
        rate, plain = self._rate(), seconds(1)
        best, best_gain, gain = 0, 0.0, 0.0
        for length, reach in enumerate(accumulate(chances, mul), 1):
            gain += reach
            net = gain - rate * (seconds(length + 1) - plain)
            if net > best_gain:
                best, best_gain = length, net
        return best, best_gain

    def _longest_to_try(self) -> int:
        """A pass of unknown cost is at most twice as long as a known one: it may turn out dear."""
        return 2 * max(self.costs.known) - 1

    def _beats_the_model(self, gain: float, num_tokens: float) -> bool:
        """Whether an offer is worth more than a draft of the model, which then also has its tokens to read."""
        rate = self._rate()
        rival = self._worth.gain(rate, self.costs.seconds(1))
        if rival is None:
            rival = self._gain_ahead(0)
        return gain > rival + MARGIN + (rate * self._worth.seconds_missed * num_tokens if rival > 0 else 0.0)

    def should_draft(self) -> bool:
        length = len(self._confidences)
        # The first round is a plain one: it tells what a token of the target costs, and nobody waits for a draft.
        if not self.costs.is_supported(1) or length >= min(LONGEST_AUTO_DRAFT, self._longest_to_try()):
            return False
        if not self.draft_cost.is_supported and length >= FIRST_DRAFT:
            return False
        if not length and self._plain_checks.is_due(self._rate() * self.costs.seconds(1) - 1):
            return False
        if self._is_probe:
            return length < self._probe_length
        if self._gain_ahead(length) > (0 if length else -BENEFIT_OF_DOUBT):
            return True
        if length == 0:
            self._probe_length, loss = self._least_bad_length()
            self._probe_yield = self._yield(self._probe_length)
            self._is_probe = loss <= self._exploration_budget
        return self._is_probe

    def observe(self, round_: Round) -> None:
        num_drafted = len(round_.draft_ids) + round_.num_cut
        self._plain_checks.observe(round_, self.costs.seconds(1))
        self.costs.observe(num_drafted + 1, round_.verify_seconds)
        if self._offer is not None:
            self.matches.observe(self._offer, round_.token_ids)
        if round_.index == 0:
            # The drafter has just read the prompt.
            self._worth.num_missed = 0
        if round_.source == "model":
            for position, confidence in enumerate(self._confidences[: round_.num_accepted + round_.num_rejected]):
                self.acceptance.observe(confidence, position < round_.num_accepted)
            self._learn_draft_cost(round_, num_drafted)
        else:
            self._worth.num_missed += len(round_.token_ids)
        self._pay(round_)
        if not self._is_probe and round_.seconds:
            self._recent.observe(len(round_.token_ids), round_.seconds)

    def _learn_draft_cost(self, round_: Round, num_drafted: int) -> None:
        # After a pause the drafter first reads what it missed; that is not the price of a token.
        if not self._worth.num_missed or (not self.draft_cost.is_supported and self._worth.num_missed <= FIRST_DRAFT):
            self.draft_cost.observe(num_drafted, round_.draft_seconds)
        self._worth.observe(round_, num_drafted * self.draft_cost.seconds)

    def _pay(self, round_: Round) -> None:
        """Keep account of what tries cost: their time in tokens of plain decoding, less the tokens to be expected.

        Not less those that came: bad luck with a few tokens is no reason to stop trying.
        """
        if self._is_probe:
            self._exploration_budget -= max(round_.seconds / self.costs.seconds(1) - 1 - self._probe_yield, 0.0)
        self._exploration_budget = min(
            self._exploration_budget + EXPLORATION_SHARE * len(round_.token_ids), LARGEST_EXPLORATION_BUDGET
        )

    def _rate(self) -> float:
        plain = self.costs.seconds(1)
        recent = self._recent.tokens / self._recent.seconds if self._recent.num_rounds else 0.0
        return max(recent, 1 / plain) if plain else recent

    def _gain_ahead(self, length: int) -> float:
        """Best of yield - rate * cost over numbers of further tokens."""
        here = self.costs.optimistic_seconds(length + 1)
        # Drafting pays at all if it beats plain decoding; a lucky rate of late says nothing about that.
        rate = self._rate() if length else 1 / here
        gain, best, chance = 0.0, -1.0, self._reach
        for further in range(1, min(LONGEST_AUTO_DRAFT, self._longest_to_try()) - length + 1):
            chance *= self.acceptance.mean
            gain += chance
            cost = further * self.draft_cost.seconds + self.costs.optimistic_seconds(length + further + 1) - here
            best = max(best, gain - rate * cost)
        return best

    def _yield(self, length: int) -> float:
        """Tokens that a model's draft of this length is expected to bring."""
        return sum(self.acceptance.mean**position for position in range(1, length + 1))

    def _reading_seconds(self) -> float:
        """What it costs the draft model to read what it missed: as many of its steps as it would take the target."""
        num_missed = self._worth.num_missed
        share = self.draft_cost.seconds / self.costs.seconds(1)
        expected = share * (self.costs.optimistic_seconds(num_missed + 1) - self.costs.seconds(1))
        return max(expected, num_missed * self._worth.seconds_missed)

    def _least_bad_length(self) -> tuple[int, float]:
        """Length of a try: where drafting would come closest to paying; and the tokens it is expected to lose."""

        def loss(length: int) -> float:
            extra = self.costs.optimistic_seconds(length + 1) - self.costs.seconds(1)
            seconds = length * self.draft_cost.seconds + extra + self._reading_seconds()
            return seconds / self.costs.seconds(1) - self._yield(length)

        best = min((length for length in PROBE_LENGTHS if length <= self._longest_to_try()), key=loss)
        return best, loss(best)
