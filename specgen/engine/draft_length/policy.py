"""Chooses draft lengths by measured cost (`-k auto`), for model drafts and lookup drafts.

A policy never sees a token before it is kept: it decides whether a *further* one is drafted, from those drafted before.
So no drafted token is discarded, and the target's distribution stays exact.
"""

from __future__ import annotations

from math import inf

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import AcceptanceByConfidence, LookupMatch
from specgen.engine.draft_length.baseline_refresh import BaselineRefresh
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.exploration import Exploration
from specgen.engine.draft_length.lookup_drafts import LookupDrafts
from specgen.engine.draft_length.loss_limit import RISKED_SHARE, LossLimit
from specgen.engine.draft_length.model_drafts import ModelDrafts
from specgen.engine.draft_length.replay_cost import ReplayCost
from specgen.engine.draft_length.throughput import Throughput

MARGIN = 0.5
"""Tokens by which a lookup draft must gain more than the model's: where a match is good, the model is, too."""


class CostAwareLength:
    """Drafts as long as the expected tokens are worth their time at the present rate of tokens per second.

    The rate is that of the recent rounds and never below plain decoding, so drafting that does not pay stops by
    itself. `ModelDrafts` and `LookupDrafts` weigh the two kinds of drafts, `LossLimit` stops them where the estimates
    are wrong, `Exploration` pays for trials of drafts that are not expected to pay, and `BaselineRefresh` schedules
    rounds without a draft.
    Source: the renewal-reward argument of dynamic draft lengths; Liu et al. 2024 (arXiv:2406.14066) use the same
    objective per batch.

    Args:
        costs: Costs of target passes; updated by the rounds, and shared between answers.
        draft_cost: Cost of a pass of the draft model; None: unknown.
        acceptance: Mean acceptance of its tokens in earlier runs; None: unknown.
    """

    uses_confidence = True

    def __init__(self, costs: CostTable, draft_cost: DraftCost | None = None, acceptance: float | None = None) -> None:
        self.costs = costs
        self.draft_cost = draft_cost or DraftCost(None, costs)
        self._throughput = Throughput(costs)
        self._replay = ReplayCost(costs)
        self._model = ModelDrafts(
            costs, self.draft_cost, self._throughput, self._replay, AcceptanceByConfidence(acceptance)
        )
        self._lookup = LookupDrafts(costs, self._throughput, self._replay)
        self._exploration = Exploration()
        self._limit = LossLimit()
        self._baseline = BaselineRefresh()
        self._trial_length = 0
        self._affordable = inf
        """Loss that this round's draft may risk, without reading missed tokens."""
        self._is_stopped = False
        """Whether the model would draft, but must not lose more."""

    @property
    def rate(self) -> float:
        """Tokens per second of the recent rounds, which value time."""
        return self._throughput.rate

    @property
    def risked_seconds(self) -> float:
        """What the rest of this round's draft and the target's pass may take if no token is accepted."""
        return self._model.seconds_left(self._affordable)

    def start_text(self, prefill: Prefill) -> None:
        self._model.start_text(prefill)
        self._lookup.start_text()
        self._exploration.start_text()
        self._limit.start_text()
        self._is_stopped = False

    def start_round(self, num_replayed: int = 0) -> None:
        self._replay.start_round(num_replayed)
        self._model.start_round()
        self._lookup.start_round()
        self._exploration.end_trial()

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        self._model.on_token(confidence, num_passes)

    def on_pass(self, confidence: float) -> None:
        self._model.on_pass(confidence)

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        self._lookup.note(match)
        if not self.costs.is_supported(1):
            return 0
        best = self._lookup.best_length(match, self._replay.pass_seconds)
        is_trial = not best.num_tokens
        if is_trial:
            # The cost of longer passes is unknown: it may be small.
            best = self._lookup.best_length(match, self._replay.optimistic_seconds)
        if not best.num_tokens:
            return 0
        loss = self._lookup.loss(best.num_tokens)
        if loss > self._limit.left(loss):
            return 0
        may_model = has_draft_model and not self._is_stopped
        if may_model and self._model.exceeds(best.gain, best.expected_tokens + 1, MARGIN):
            return 0
        if is_trial:
            # A gain is expected, so a trial could be repeated without end: its cost is what it may lose.
            cost = best.expected_tokens - best.gain
            if not self._exploration.can_lose(cost):
                return 0
            self._exploration.start_trial(cost)
        return best.num_tokens

    def note_matched(self, num_tokens: int) -> None:
        """Notes how many accepted tokens of a tree come from matches alone: they are no gain of the model."""
        self._model.num_matched = num_tokens

    def note_rows(self, num_rows: int) -> None:
        """Notes that the model's next pass is over so many rows of a tree."""
        self._model.further_rows += self.draft_cost.rows.passes([num_rows]) - 1

    def should_draft(self) -> bool:
        length = self._model.num_drafted
        # The first round has no draft: it measures a pass of the target, and no output waits for a draft.
        if not self.costs.is_supported(1) or length >= self._model.limit:
            return False
        has_begun = self._model.has_begun
        if not has_begun and (self._is_baseline_due() or self.costs.is_single_doubtful):
            return False
        if self._exploration.is_trial:
            return length < self._trial_length
        losses = self._model.losses_where_it_pays()
        if has_begun:
            return any(loss <= self._affordable for loss in losses)
        smallest = min(losses, default=None)
        if smallest is not None:
            left, reading = self._limit.left(smallest), self._limit.charged(self._model.reading)
            self._affordable = max(left * RISKED_SHARE - reading, smallest)
            self._is_stopped = smallest + reading > left
            return not self._is_stopped
        trial = self._model.best_trial()
        if trial is not None:
            self._trial_length, loss = trial
            if self._exploration.can_lose(loss) and loss <= self._limit.left(loss):
                self._exploration.start_trial(loss)
                self._affordable = self._model.loss(self._trial_length)
        return self._exploration.is_trial

    def _is_baseline_due(self) -> bool:
        return self._baseline.is_due(self._throughput.rate * self.costs.seconds(1) - 1)

    def observe(self, round_: Round) -> None:
        is_of_model = self._model.has_drafted(round_)
        reading = self._limit.charged(self._model.reading) if is_of_model and round_.index else 0.0
        is_known = self.costs.is_supported(round_.num_fed)
        expected = self._model.lost(round_)
        self._learn(round_)
        # The first pass of a length shows its cost, which helps all texts, so this text is not charged for it. Nor
        # does it pay for more than the expected cost.
        lost = min(expected, self._model.lost(round_)) + reading if is_known else float(-round_.num_accepted)
        self._limit.observe(lost, len(round_.token_ids), is_drafted=is_of_model)

    def _learn(self, round_: Round) -> None:
        self._baseline.observe(round_)
        self._lookup.observe(round_)
        if round_.is_warmup:
            # Its tokens count, its time says nothing about later rounds.
            self._model.observe_acceptance(round_)
            return
        self.costs.observe(round_.num_fed, round_.verify_seconds)
        self._model.observe(round_)
        self._exploration.observe(round_, self._model.lost(round_) if self._model.has_drafted(round_) else None)
        if not self._exploration.is_trial:
            self._throughput.observe(round_)
