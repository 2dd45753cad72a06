"""Sizes a draft that branches: which tokens are worth a row of the target's pass, and which a pass of the draft.

Tokens are weighed before they are drawn, by the draft's probabilities at tokens drawn before, and every drawn token is
verified. So the target's distribution stays exact. Best first by the probability of a path: Li et al. 2024 (EAGLE-2,
arXiv:2406.16858), Section 4.1; the size by cost is the renewal-reward argument of `CostAwareLength`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from operator import mul
from typing import TYPE_CHECKING

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import BIN_DECAY, INITIAL_MEAN_ACCEPTANCE, AcceptanceByMatch, LookupMatch
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.tree_plan import Branching, Outlook, Plan, Step, best_first, plans_of

if TYPE_CHECKING:
    from specgen.engine.draft_length.policy import CostAwareLength

SHARE_BINS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Upper ends of the bins of draft probabilities, but the last: most tokens after the best one have small ones."""
SHARE_PRIOR_WEIGHT = 1.0
"""Accepted tokens, as expected, that each bin starts with."""
MEAN_PRIOR_WEIGHT = 3.0


class AcceptanceByShare:
    """Estimates the probability that the target's token is one that the draft gives a certain probability.

    Each bin of probabilities learns the ratio of accepted tokens to the sum of their probabilities. First tokens after
    a token have bins of their own. Where tokens are drawn, the target may accept a first one that is not the likeliest,
    and it tests the others only if it rejects the first.
    """

    def __init__(self) -> None:
        num_bins = 2 * (len(SHARE_BINS) + 1)
        self._accepted, self._expected = [SHARE_PRIOR_WEIGHT] * num_bins, [SHARE_PRIOR_WEIGHT] * num_bins
        self.mean = INITIAL_MEAN_ACCEPTANCE
        """Acceptance of the best token after an accepted one: estimates a token whose probability is not known yet."""
        self._num_best = 0

    def estimate(self, share: float, position: int) -> float:
        """Returns the estimate for a token with this probability, after so many others with the same parent."""
        index = _bin(share, position)
        return min(share * self._accepted[index] / self._expected[index], 1.0)

    def observe(self, shares: Sequence[float], accepted: int | None) -> None:
        """Learns from tokens with one parent, the best one first, and which of them was accepted."""
        for position, share in enumerate(shares):
            index = _bin(share, position)
            self._accepted[index] = self._accepted[index] * BIN_DECAY + (position == accepted)
            self._expected[index] = self._expected[index] * BIN_DECAY + share
        if shares:
            self._num_best += 1
            weight = 1 / min(self._num_best + MEAN_PRIOR_WEIGHT, 1 / (1 - BIN_DECAY))
            self.mean += ((accepted == 0) - self.mean) * weight


def _bin(share: float, position: int) -> int:
    return 2 * bisect_right(SHARE_BINS, share) + min(position, 1)


class TreeLength:
    """Decides the size and the shape of each draft, next to a policy for chains.

    Args:
        num_nodes: Tokens of a tree: this many if the size is fixed, else at most.
        by_cost: Decides whether to draft at all, and about passes of the draft. None: `-k` gives the longest path.
        is_fixed: Every tree has `num_nodes` tokens.
        acceptance: What earlier answers taught.
    """

    def __init__(
        self,
        num_nodes: int,
        by_cost: CostAwareLength | None = None,
        *,
        is_fixed: bool = True,
        acceptance: AcceptanceByShare | None = None,
    ) -> None:
        self.num_nodes = num_nodes
        self._inner: LengthPolicy = by_cost or FixedLength()
        self._prices = by_cost
        self._is_fixed = is_fixed or self._prices is None
        self.acceptance = acceptance or AcceptanceByShare()
        self._match_acceptance = AcceptanceByMatch()
        self.matches: Sequence[LookupMatch] = ()
        """Matches of lookup, to be added to this round's tree."""
        self._reaches: list[list[float]] = []
        """Probability that the text follows each match up to each of its tokens."""
        self._shares: list[float | None] = []
        self._num_rounds = 0
        self.uses_confidence = self._inner.uses_confidence

    def start_text(self, prefill: Prefill) -> None:
        self._inner.start_text(prefill)
        self._match_acceptance.start_text()

    def start_round(self, num_replayed: int = 0) -> None:
        self._shares, self.matches, self._reaches = [], (), []
        self._num_rounds += 1
        self._inner.start_round(num_replayed)

    def should_draft(self) -> bool:
        return self._inner.should_draft()

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        self._inner.on_token(confidence, num_passes)

    def on_pass(self, confidence: float) -> None:
        self._inner.on_pass(confidence)

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        return self._inner.tokens_to_take(match, has_draft_model=has_draft_model)

    def note_matches(self, matches: Sequence[LookupMatch]) -> None:
        """Notes matches whose tokens may be branches of this round's tree."""
        self.matches = matches
        self._reaches = [list(accumulate(self._match_acceptance.estimates(match), mul)) for match in matches]

    def on_tree(self, shares: Sequence[float | None]) -> None:
        """Notes the draft's probability of each token of the finished tree; None if it comes from a match."""
        self._shares = list(shares)

    def observe(self, round_: Round) -> None:
        tree, accepted = round_.tree, round_.draft_ids[: round_.num_accepted]
        is_whole = tree is not None and len(tree) == len(self._shares)
        if tree is not None and is_whole and self._prices is not None:
            self._prices.note_matched(sum(self._shares[index] is None for index in tree.followed(accepted)))
        self._inner.observe(round_)
        for match in self.matches:
            self._match_acceptance.observe(match, round_.token_ids)
        if tree is not None and is_whole:
            self._observe_tree(tree, accepted)

    def _observe_tree(self, tree: DraftTree, accepted: Sequence[int]) -> None:
        index = ROOT
        for token in (*accepted, None):
            drawn = {child: share for child in tree.children(index) if (share := self._shares[child]) is not None}
            found = None if token is None else tree.child(index, token)
            self.acceptance.observe([*drawn.values()], [*drawn].index(found) if found in drawn else None)
            if found is None:
                return
            index = found

    def next_tokens(self, branchings: Sequence[Branching], num_drafted: int, depth: int) -> Step:
        """Decides which tokens to draw next.

        The tree is continued best first, as if one token of mean acceptance followed every further one. Those that
        others would follow are drawn and fed to the draft in one pass: as many of them as are worth the time of that
        pass. If none is, the rest of the tree is drawn without a further pass.

        Args:
            branchings: All tokens that may be drawn.
            num_drafted: Tokens drawn so far.
            depth: Longest path.
        """
        num_left = self.num_nodes - num_drafted
        # Where a pass of the draft has a price, only what the next pass gives is weighed against it.
        outlook = Outlook(self._score, self.acceptance.mean, depth, looks_further=self._prices is None)
        plans = plans_of(best_first(branchings, self._reaches, num_left, outlook), num_left)
        best = plans[-1] if self._prices is None else self._best_plan(plans, num_drafted, self._prices)
        if best.fed:
            if self._prices is not None:
                self._prices.note_rows(len(best.fed))
            return Step(best.fed, is_fed=True)
        return Step(best.drawn, False, best.num_matched(len(self._reaches)))

    def _score(self, branching: Branching, position: int) -> float:
        shares = branching.shares
        return branching.reach * self.acceptance.estimate(shares[position], position) if position < len(shares) else 0.0

    def _best_plan(self, plans: Sequence[Plan], num_drafted: int, prices: CostAwareLength) -> Plan:
        """Returns the plan that gains most tokens, less those that the time of its passes is worth.

        If no token is accepted, it must not take longer than the text may lose.
        """
        costs, draft_cost, rate, risked = prices.costs, prices.draft_cost, prices.rate, prices.risked_seconds
        most = max(costs.longest_trial - num_drafted, 0)
        seconds = [costs.optimistic_seconds(num_drafted + n + 1) for n in range(self.num_nodes + 1)]
        # A tree that is continued may get past rows that cost more than more of them, or were once measured so.
        least = [*accumulate(reversed(seconds), min)][::-1]
        best, best_gain = plans[0], -inf
        if not draft_cost.rows.is_measured and self._num_rounds % 2:
            # Passes of the same size in all rounds would not show what a further token costs.
            plans = plans[:2]
        for plan in plans:
            gains = [0.0, *accumulate(token.value for token in plan.tokens)]
            size = len(plan.tokens)
            if not self._is_fixed:
                num_fed = len(plan.fed)
                left = risked - (draft_cost.rows.passes([num_fed]) * draft_cost.typical_seconds if num_fed else 0.0)
                passes = least if num_fed else seconds
                gains = [gain - rate * (here - seconds[0]) for gain, here in zip(gains, passes, strict=False)]
                # One token costs little by now, and `should_draft` has permitted it.
                sizes = [n for n in range(min(len(gains), most + 1)) if n <= 1 or passes[n] <= left]
                size = max(sizes, key=gains.__getitem__)
            sized = Plan(plan.tokens[:size])
            num_fed = len(sized.fed)
            drafting = draft_cost.seconds * draft_cost.rows.passes([num_fed]) if num_fed else 0.0
            gain = gains[size] - rate * drafting
            if gain > best_gain:
                best, best_gain = sized, gain
        return best
