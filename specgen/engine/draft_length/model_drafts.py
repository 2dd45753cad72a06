"""Decides how long a model's draft gets, token by token, and what the model's rounds yielded."""

from __future__ import annotations

from collections.abc import Iterator

from specgen.core.events import Prefill, Round
from specgen.core.settings import LONGEST_AUTO_DRAFT
from specgen.engine.draft_length.acceptance import AcceptanceByConfidence
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.draft_model_stats import DraftModelStats, PassesPerToken
from specgen.engine.draft_length.replay_cost import ReplayCost
from specgen.engine.draft_length.throughput import Throughput

TRIAL_LENGTHS = (1, 3, 4, 5, 7)
"""Not 2: in float32 a pass over three tokens was measured more expensive than one over four, and after paying for it
the policy expects nothing cheaper from longer ones."""

BEST_ACCEPTANCE = 0.9
"""Acceptance rate of the best drafts. A draft that would not pay even with it is not tried."""

MARGIN = 0.03
"""Tokens that a draft must be expected to gain over plain decoding: a smaller gain may as well be a loss."""


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
        acceptance: What earlier texts taught.
    """

    def __init__(
        self,
        costs: CostTable,
        draft_cost: DraftCost,
        throughput: Throughput,
        replay: ReplayCost,
        acceptance: AcceptanceByConfidence,
    ) -> None:
        self._costs = costs
        self._replay = replay
        self._draft_cost = draft_cost
        self._throughput = throughput
        self._acceptance = acceptance
        self._stats = DraftModelStats()
        self._passes_per_token = PassesPerToken()
        self._confidences: list[float] = []
        self._num_passes = self._num_unfinished = 0
        self._reach = self._unfinished = 1.0
        self.num_matched = 0
        """Accepted tokens of this round's tree that the model did not propose."""
        self.further_rows = 0.0
        """What the further rows of this round's passes cost, in passes over one."""

    def start_round(self) -> None:
        """Prepares for a new round."""
        self.num_matched, self.further_rows = 0, 0.0
        self._confidences = []
        self._num_passes = self._num_unfinished = 0
        self._reach = self._unfinished = 1.0

    def start_text(self, prefill: Prefill) -> None:
        """Prepares for a new text, whose prompt was just read."""
        self._acceptance.mean.start_text()
        self._stats.note_reading(prefill.num_prompt_tokens - prefill.num_reused_tokens, prefill.draft_seconds)

    def on_token(self, confidence: float, num_passes: int) -> None:
        """Notes that a token was drafted."""
        self._passes_per_token.observe(self._num_unfinished + num_passes)
        self._num_passes += num_passes
        self._confidences.append(confidence)
        self._reach *= self._acceptance.estimate(confidence)
        self._num_unfinished, self._unfinished = 0, 1.0

    def on_pass(self, confidence: float) -> None:
        """Notes a pass that gave no further token."""
        self._num_passes += 1
        self._num_unfinished += 1
        self._unfinished *= confidence

    @property
    def has_begun(self) -> bool:
        """Whether the model computed something in this round."""
        return self._num_passes > 0

    @property
    def num_drafted(self) -> int:
        """Tokens drafted in this round."""
        return len(self._confidences)

    @property
    def limit(self) -> int:
        """Longest draft at this time."""
        return min(LONGEST_AUTO_DRAFT, self._costs.longest_trial)

    def losses_where_it_pays(self) -> Iterator[float]:
        """Yields the loss of a rejected draft, in tokens of plain decoding, for each length ahead that should pay."""
        margin = MARGIN if not self.num_drafted else 0.0
        for length, gain in enumerate(self._gains_ahead(), self.num_drafted + 1):
            if gain > margin:
                yield self.loss(length)

    def loss(self, length: int) -> float:
        """Returns the tokens of plain decoding that a draft of so many tokens loses if it is rejected."""
        passes = self._num_passes + (length - self.num_drafted) * self._passes_per_token.mean
        seconds = passes * self._draft_cost.typical_seconds + self._replay.optimistic_seconds(length + 1)
        return (seconds - self._replay.pass_seconds(1)) / self._costs.seconds(1)

    def seconds_left(self, loss: float) -> float:
        """Returns what further passes of the draft and the target's pass may take, to lose so many tokens at most."""
        drafting = (self._num_passes + self.further_rows) * self._draft_cost.typical_seconds
        return loss * self._costs.seconds(1) + self._replay.pass_seconds(1) - drafting

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
        reading = (self._stats.seconds_per_missed or 0.0) * num_tokens
        return gain <= own_gain + margin + (rate * reading if own_gain > 0 else 0.0)

    def best_trial(self) -> tuple[int, float] | None:
        """Returns the length that comes closest to paying, and the tokens of plain decoding that it should lose.

        Returns:
            None if no length would pay with the acceptance of the best drafts.
        """
        one, reading = self._costs.seconds(1), self._reading_seconds()
        lengths = [length for length in TRIAL_LENGTHS if length <= self._costs.longest_trial]
        costs = {}
        for length in lengths:
            extra = self._replay.optimistic_seconds(length + 1) - self._replay.pass_seconds(1)
            costs[length] = (length * self._passes_per_token.mean * self._draft_cost.seconds + extra) / one
        if not any(_chain(BEST_ACCEPTANCE, length) - cost > MARGIN for length, cost in costs.items()):
            return None
        losses = {length: cost - _chain(self._acceptance.mean.value, length) for length, cost in costs.items()}
        best = min(lengths, key=losses.__getitem__)
        return best, losses[best] + reading / one

    def lost(self, round_: Round) -> float:
        """Returns the tokens of plain decoding that a round's draft lost by the known costs, without reading."""
        one = self._costs.seconds(1)
        drafting = self._passes_of(round_) * self._draft_cost.typical_seconds if self.has_drafted(round_) else 0.0
        return (drafting + self._costs.seconds(round_.num_fed) - one) / one - round_.num_accepted if one else 0.0

    @property
    def reading(self) -> float:
        """Tokens of plain decoding that reading the missed tokens takes."""
        one = self._costs.seconds(1)
        return self._reading_seconds() / one if one else 0.0

    def observe(self, round_: Round) -> None:
        """Learns from a finished round."""
        num_missed = self.observe_acceptance(round_)
        if not self.has_drafted(round_):
            return
        num_passes = self._passes_of(round_, num_missed)
        # After a pause the drafter first reads what it missed; that time is not the cost of a token. The first draft
        # follows a round without one, so a single missed token is tolerated once.
        if not num_missed or (not self._draft_cost.is_supported and num_missed == 1):
            if round_.tree is not None:
                self._draft_cost.rows.observe(round_.pass_rows, round_.draft_seconds)
            self._draft_cost.observe(num_passes, round_.draft_seconds)
        elif not self._draft_cost.is_measured:
            # An earlier run's cost that faded away would make this draft look cheap.
            seconds = max(round_.draft_seconds - self._reading_seconds(), round_.draft_seconds / 2)
            self._draft_cost.observe(num_passes, seconds)
        own = round_.num_accepted - self.num_matched
        self._stats.observe(round_, num_passes * self._draft_cost.seconds, own)

    def observe_acceptance(self, round_: Round) -> int:
        """Learns from a finished round whose time means nothing. Returns how many tokens the draft model had missed."""
        if round_.index == 0:
            # The drafter has just read the prompt.
            self._stats.num_missed = 0
        num_missed = self._stats.num_missed
        if not self.has_drafted(round_):
            self._stats.num_missed += len(round_.token_ids)
            return num_missed
        num_drafted = len(round_.draft_ids) + round_.num_cut
        # A path of a tree may end before its longest one: what would follow is not tested.
        is_whole = round_.num_accepted == num_drafted and round_.tree is None
        num_tested = len(self._confidences) if is_whole else round_.num_accepted + round_.num_rejected
        for position, confidence in enumerate(self._confidences[:num_tested]):
            self._acceptance.observe(confidence, position < round_.num_accepted - self.num_matched)
        if round_.is_warmup:
            self._stats.num_missed = 0
        return num_missed

    def _passes_of(self, round_: Round, num_missed: int = 0) -> float:
        """Returns a round's passes of the draft model, by their cost, without reading missed tokens."""
        if round_.pass_rows and round_.tree is not None:
            first, *further = round_.pass_rows
            return self._draft_cost.rows.passes([max(first - num_missed, 1), *further])
        # A pass without a token costs the same.
        return self._num_passes or round_.num_draft_passes

    def has_drafted(self, round_: Round) -> bool:
        """Returns whether the draft model made the round's draft, or found no token to propose."""
        return round_.source == "model" or (round_.source is None and bool(self._confidences))

    def _gains_ahead(self) -> Iterator[float]:
        """Yields yield - rate * cost for 1, 2, ... further tokens."""
        length = self.num_drafted
        here = self._replay.optimistic_seconds(length + 1)
        # Drafting pays at all if it is faster than plain decoding; a lucky recent rate does not change that.
        rate = self._throughput.rate if length else 1 / here
        token_seconds = self._passes_per_token.mean * self._draft_cost.seconds
        mean = self._acceptance.mean.value
        reach_here = self._reach * self._unfinished
        gain, reach = 0.0, reach_here
        for further in range(1, self.limit - length + 1):
            reach *= mean
            gain += reach
            cost = further * token_seconds
            cost += self._replay.optimistic_seconds(length + further + 1) - here
            cost += (reach_here - reach) * self._replay.rejection_seconds(length + gain)
            yield gain - rate * cost

    def _reading_seconds(self) -> float:
        """Estimates the draft model's time to read missed tokens: at first, as many of its steps as the target's."""
        num_missed, per_missed = self._stats.num_missed, self._stats.seconds_per_missed
        if per_missed is not None:
            return num_missed * per_missed
        share = self._draft_cost.seconds / self._costs.seconds(1)
        return share * (self._costs.optimistic_seconds(num_missed + 1) - self._costs.seconds(1))


def _chain(acceptance: float, length: int) -> float:
    """Returns the expected number of accepted tokens of a draft of this length."""
    return sum(acceptance**position for position in range(1, length + 1))
