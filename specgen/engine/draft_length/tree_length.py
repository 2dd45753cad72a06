"""Sizes a draft that branches: which tokens are worth a row of the target's pass, and which a pass of the draft.

Tokens are weighed before they are drawn, by the draft's probabilities at tokens drawn before, and every drawn token is
verified. So the target's distribution stays exact. Best first by the probability of a path: Li et al. 2024 (EAGLE-2,
arXiv:2406.16858), Section 4.1; the size by cost is the renewal-reward argument of `CostAwareLength`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import BIN_DECAY, INITIAL_MEAN_ACCEPTANCE, AcceptanceByMatch, LookupMatch
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength

if TYPE_CHECKING:
    from specgen.engine.draft_length.policy import CostAwareLength

SHARE_BINS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Upper ends of the bins of draft probabilities, but the last: most tokens after the best one have small ones."""
SHARE_PRIOR_WEIGHT = 1.0
"""Accepted tokens, as expected, that each bin starts with."""
MEAN_PRIOR_WEIGHT = 3.0


class AcceptanceByShare:
    """Estimates the probability that the target's token is one that the draft gives a certain probability.

    Each bin of probabilities learns the ratio of accepted tokens to the sum of their probabilities.
    """

    def __init__(self) -> None:
        self._accepted = [SHARE_PRIOR_WEIGHT] * (len(SHARE_BINS) + 1)
        self._expected = [SHARE_PRIOR_WEIGHT] * (len(SHARE_BINS) + 1)
        self.mean = INITIAL_MEAN_ACCEPTANCE
        """Acceptance of the best token after an accepted one: estimates a token whose probability is not known yet."""
        self._num_best = 0

    def estimate(self, share: float) -> float:
        """Returns the estimate for a token with this probability."""
        index = bisect_right(SHARE_BINS, share)
        return min(share * self._accepted[index] / self._expected[index], 1.0)

    def observe(self, shares: Sequence[float], accepted: int | None) -> None:
        """Learns from tokens with one parent, the best one first, and which of them was accepted."""
        for position, share in enumerate(shares):
            index = bisect_right(SHARE_BINS, share)
            self._accepted[index] = self._accepted[index] * BIN_DECAY + (position == accepted)
            self._expected[index] = self._expected[index] * BIN_DECAY + share
        if shares:
            self._num_best += 1
            weight = 1 / min(self._num_best + MEAN_PRIOR_WEIGHT, 1 / (1 - BIN_DECAY))
            self.mean += ((accepted == 0) - self.mean) * weight


class Branching:
    """The tokens that may follow one token of the draft, or the text.

    Args:
        node: Index of the token before them, or `ROOT`.
        depth: Tokens of the draft before them.
        reach: Probability that the token before them is accepted.
        shares: The draft's probabilities of the likeliest tokens, descending.
    """

    def __init__(self, node: int, depth: int, reach: float, shares: Sequence[float]) -> None:
        self.node, self.depth, self.reach, self.shares = node, depth, reach, shares
        self.num_taken = 0
        """Tokens that are part of the draft."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next tokens of a tree.

    Args:
        branchings: Of each token, in order, the index of its branching.
        is_fed: They are fed to the draft; otherwise the tree ends with them.
        num_matched: At the end, how many tokens of each match to add.
    """

    branchings: list[int]
    is_fed: bool
    num_matched: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A tree's best continuation.

    Args:
        taken: Branching and order of each token that may be drawn now.
        followed: Orders of those that others would follow.
        values: Scores of all tokens, in order.
        num_matched: How many of them are tokens of each match.
    """

    taken: list[tuple[int, int]] = field(default_factory=list)
    followed: set[int] = field(default_factory=set)
    values: list[float] = field(default_factory=list)
    num_matched: list[int] = field(default_factory=list)


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
        self.uses_confidence = self._inner.uses_confidence

    def start_text(self, prefill: Prefill) -> None:
        self._inner.start_text(prefill)

    def start_round(self, num_replayed: int = 0) -> None:
        self._shares, self.matches, self._reaches = [], (), []
        self._inner.start_round(num_replayed)

    def should_draft(self) -> bool:
        return self._inner.should_draft()

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        self._inner.on_token(confidence, num_passes)

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
        others would follow are drawn and fed to the draft in one pass; if there are none, or the pass does not pay,
        the rest of the tree is drawn without a further pass.

        Args:
            branchings: All tokens that may be drawn.
            num_drafted: Tokens drawn so far.
            depth: Longest path.
        """
        plan = self._plan(branchings, num_drafted, depth)
        frontier = [branching for branching, order in plan.taken if order in plan.followed]
        # Without the pass, other tokens take the place of those that would follow.
        flat = self._plan(branchings, num_drafted, 0) if plan.followed else plan
        if frontier and self._pays(self._net(plan.values, num_drafted) - self._net(flat.values, num_drafted)):
            return Step(frontier, is_fed=True)
        return Step([branching for branching, _ in flat.taken], False, flat.num_matched)

    def _plan(self, branchings: Sequence[Branching], num_drafted: int, depth: int) -> _Plan:
        """Continues the tree best first to the size that pays."""
        plan = self._best_first(branchings, self.num_nodes - num_drafted, depth)
        if self._is_fixed:
            return plan
        size = self._best_size(plan.values, num_drafted)
        return self._best_first(branchings, size, depth) if size < len(plan.values) else plan

    def _best_first(self, branchings: Sequence[Branching], num_left: int, depth: int) -> _Plan:
        plan = _Plan(num_matched=[0] * len(self._reaches))
        heap = [(-self._score(b, b.num_taken), index, b.num_taken, -1, b.depth) for index, b in enumerate(branchings)]
        # Matches have negative indices.
        heap += [(-reaches[0], -1 - number, 0, -1, depth) for number, reaches in enumerate(self._reaches)]
        heapify(heap)
        while heap and len(plan.values) < num_left:
            negative, index, position, leader, at = heappop(heap)
            if negative == 0.0:
                break
            order = len(plan.values)
            plan.values.append(-negative)
            if index < 0:
                plan.num_matched[-1 - index] += 1
                if position + 1 < len(self._reaches[-1 - index]):
                    heappush(heap, (-self._reaches[-1 - index][position + 1], index, position + 1, -1, depth))
                continue
            if leader < 0:
                plan.taken.append((index, order))
                branching = branchings[index]
                heappush(heap, (-self._score(branching, position + 1), index, position + 1, -1, at))
            else:
                plan.followed.add(leader)
            # Where a pass of the draft has a price, only what the next pass gives is weighed against it.
            if at + 1 < depth and (leader < 0 or self._prices is None):
                heappush(heap, (negative * self.acceptance.mean, index, 0, order if leader < 0 else leader, at + 1))
        return plan

    def _score(self, branching: Branching, position: int) -> float:
        shares = branching.shares
        return branching.reach * self.acceptance.estimate(shares[position]) if position < len(shares) else 0.0

    def _best_size(self, values: Sequence[float], num_drafted: int) -> int:
        """Returns how many further tokens gain most."""
        assert self._prices is not None
        longest = min(len(values), max(self._prices.costs.longest_trial - num_drafted, 0))
        return max(range(longest + 1), key=lambda size: self._net(values[:size], num_drafted))

    def _net(self, values: Sequence[float], num_drafted: int) -> float:
        """Returns the expected number of further tokens, less those that their rows cost."""
        gain = sum(values)
        if self._prices is None or self._is_fixed:
            return gain
        costs = self._prices.costs
        rows = costs.optimistic_seconds(num_drafted + len(values) + 1) - costs.optimistic_seconds(num_drafted + 1)
        return gain - self._prices.rate * rows

    def _pays(self, gain: float) -> bool:
        """Returns whether a pass of the draft is worth its time."""
        return self._prices is None or gain > self._prices.rate * self._prices.draft_cost.seconds
