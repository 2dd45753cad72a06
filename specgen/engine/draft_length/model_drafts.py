"""Decides how long a model's draft gets, token by token, and what the model's rounds yielded."""

from __future__ import annotations

from collections.abc import Iterator

from specgen.core.events import Round
from specgen.core.settings import LONGEST_AUTO_DRAFT
from specgen.engine.draft_length.acceptance import AcceptanceByConfidence
from specgen.engine.draft_length.cost_table import CostTable, DraftCost
from specgen.engine.draft_length.replay_cost import ReplayCost
from specgen.engine.draft_length.throughput import LATEST_WEIGHT, RecentRounds, Throughput

TRIAL_LENGTHS = (1, 3, 4, 5, 7)
"""Not 2: in float32 a pass over three tokens was measured more expensive than one over four, and after paying for it
the policy expects nothing cheaper from longer ones."""


class DraftModelStats:
    """What the rounds that the draft model drafted yielded and cost, averaged over the recent ones."""

    def __init__(self) -> None:
        self.num_missed = 0
        """Tokens written since the model last drafted: it reads them first."""
        self.seconds_per_missed = 0.0
        """Cost of reading one of them."""
        self._rounds = RecentRounds()
        """Counts accepted tokens only."""

    def gain(self, rate: float, plain_seconds: float) -> float | None:
        """Returns the accepted tokens of a round, less those lost in its extra time; None before the first round."""
        rounds = self._rounds
        return rounds.tokens - rate * (rounds.seconds - plain_seconds) if rounds.num_rounds else None

    def observe(self, round_: Round, draft_seconds: float, num_accepted: int) -> None:
        """Adds a round of the model.

        Args:
            draft_seconds: Cost of its tokens without reading missed ones.
            num_accepted: Of its tokens.
        """
        if self.num_missed:
            per_missed = max(round_.draft_seconds - draft_seconds, 0.0) / self.num_missed
            self.seconds_per_missed += (per_missed - self.seconds_per_missed) * LATEST_WEIGHT
        self.num_missed = 0
        self._rounds.observe(num_accepted, draft_seconds + round_.verify_seconds)


class ModelDrafts:
    """Weighs the expected tokens of a longer draft against the time of drafting and verifying it.

    A token at position m costs a draft step and v(m + 1) - v(m) of the target; it yields its probability of being
    reached and accepted. Drafting continues if yield - rate * cost is positive for some number of further tokens:
    looking further than one token matters where v has steps.

    Args:
        costs: The target's.
        draft_cost: Of a draft token.
        throughput: Values the time.
        replay: Costs of tokens fed again.
    """

    def __init__(self, costs: CostTable, draft_cost: DraftCost, throughput: Throughput, replay: ReplayCost) -> None:
        self._costs = costs
        self._replay = replay
        self._draft_cost = draft_cost
        self._throughput = throughput
        self._acceptance = AcceptanceByConfidence()
        self._stats = DraftModelStats()
        self._confidences: list[float] = []
        self._reach = 1.0
        self.num_matched = 0
        """Accepted tokens of this round's tree that the model did not propose."""

    def start_round(self) -> None:
        """Prepares for a new round."""
        self.num_matched = 0
        self._confidences = []
        self._reach = 1.0

    def on_token(self, confidence: float) -> None:
        """Notes that a token was drafted."""
        self._confidences.append(confidence)
        self._reach *= self._acceptance.estimate(confidence)

    @property
    def num_drafted(self) -> int:
        """Tokens drafted in this round."""
        return len(self._confidences)

    @property
    def limit(self) -> int:
        """Longest draft at this time."""
        return min(LONGEST_AUTO_DRAFT, self._costs.longest_trial)

    def pays(self) -> bool:
        """Returns whether to draft one more token."""
        return any(gain > 0 for gain in self._gains_ahead())

    def exceeds(self, gain: float, num_tokens: float, margin: float) -> bool:
        """Returns whether a draft of the model gains more than a lookup draft.

        Args:
            gain: Of the lookup draft.
            num_tokens: Tokens of the lookup round, which the model would have to read later.
            margin: Tokens by which the lookup draft must be better.
        """
        rate = self._throughput.rate
        own_gain = self._stats.gain(rate, self._costs.seconds(1))
        if own_gain is None:
            own_gain = max(self._gains_ahead(), default=-1.0)
        return gain <= own_gain + margin + (rate * self._stats.seconds_per_missed * num_tokens if own_gain > 0 else 0.0)

    def best_trial(self) -> tuple[int, float]:
        """Returns the length that comes closest to paying, and the tokens that it is expected to lose."""

        def loss(length: int) -> float:
            extra = self._replay.optimistic_seconds(length + 1) - self._replay.pass_seconds(1)
            seconds = length * self._draft_cost.seconds + extra + self._reading_seconds()
            return seconds / self._costs.seconds(1) - self.expected_tokens(length)

        best = min((length for length in TRIAL_LENGTHS if length <= self._costs.longest_trial), key=loss)
        return best, loss(best)

    def expected_tokens(self, length: int) -> float:
        """Returns the expected number of accepted tokens of a draft of this length."""
        return sum(self._acceptance.mean**position for position in range(1, length + 1))

    def observe(self, round_: Round) -> None:
        """Learns from a finished round."""
        num_missed = self.observe_acceptance(round_)
        if not self._is_of_model(round_):
            return
        # A pass without a token costs the same, and so does one that continues several branches.
        num_drafted = max(round_.num_draft_passes, len(self._confidences))
        # After a pause the drafter first reads what it missed; that time is not the cost of a token. The first draft
        # follows a round without one, so a single missed token is tolerated once.
        if not num_missed or (not self._draft_cost.is_supported and num_missed == 1):
            self._draft_cost.observe(num_drafted, round_.draft_seconds)
        own = round_.num_accepted - self.num_matched
        self._stats.observe(round_, num_drafted * self._draft_cost.seconds, own)

    def observe_acceptance(self, round_: Round) -> int:
        """Learns from a finished round whose time means nothing. Returns how many tokens the draft model had missed."""
        if round_.index == 0:
            # The drafter has just read the prompt.
            self._stats.num_missed = 0
        num_missed = self._stats.num_missed
        if not self._is_of_model(round_):
            self._stats.num_missed += len(round_.token_ids)
            return num_missed
        num_drafted = len(round_.draft_ids) + round_.num_cut
        is_whole = round_.num_accepted == num_drafted
        num_tested = len(self._confidences) if is_whole else round_.num_accepted + round_.num_rejected
        for position, confidence in enumerate(self._confidences[:num_tested]):
            self._acceptance.observe(confidence, position < round_.num_accepted - self.num_matched)
        if round_.is_warmup:
            self._stats.num_missed = 0
        return num_missed

    def _is_of_model(self, round_: Round) -> bool:
        """Returns whether the draft model made the round's draft, or found no token to propose."""
        return round_.source == "model" or (round_.source is None and bool(self._confidences))

    def _gains_ahead(self) -> Iterator[float]:
        """Yields yield - rate * cost for 1, 2, ... further tokens."""
        length = self.num_drafted
        here = self._replay.optimistic_seconds(length + 1)
        # Drafting pays at all if it is faster than plain decoding; a lucky recent rate does not change that.
        rate = self._throughput.rate if length else 1 / here
        draft_seconds, mean = self._draft_cost.seconds, self._acceptance.mean
        gain, reach = 0.0, self._reach
        for further in range(1, self.limit - length + 1):
            reach *= mean
            gain += reach
            cost = further * draft_seconds + self._replay.optimistic_seconds(length + further + 1) - here
            cost += (self._reach - reach) * self._replay.rejection_seconds(length + gain)
            yield gain - rate * cost

    def _reading_seconds(self) -> float:
        """Estimates the draft model's time to read missed tokens: as many of its steps as the target would need."""
        num_missed = self._stats.num_missed
        share = self._draft_cost.seconds / self._costs.seconds(1)
        expected = share * (self._costs.optimistic_seconds(num_missed + 1) - self._costs.seconds(1))
        return max(expected, num_missed * self._stats.seconds_per_missed)
