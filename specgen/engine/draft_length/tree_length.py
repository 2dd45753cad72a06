"""Sizes a draft that branches: which tokens are worth a row of the target's pass, and which a pass of the draft.

Tokens are weighed before they are drawn, by the draft's probabilities at tokens drawn before, and every drawn token is
verified. So the target's distribution stays exact. Best first by the probability of a path: Li et al. 2024 (EAGLE-2,
arXiv:2406.16858), Section 4.1; the size by cost is the renewal-reward argument of `CostAwareLength`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.events import Round
from specgen.engine.draft_length.acceptance import BIN_DECAY, INITIAL_MEAN_ACCEPTANCE, LookupMatch
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
        """Of the best token after an accepted one: the estimate for a token whose probability is not known yet."""
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
        self._shares: list[float] = []
        self.uses_confidence = self._inner.uses_confidence

    def start_round(self, num_replayed: int = 0) -> None:
        self._shares = []
        self._inner.start_round(num_replayed)

    def should_draft(self) -> bool:
        return self._inner.should_draft()

    def on_token(self, confidence: float) -> None:
        self._inner.on_token(confidence)

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        return self._inner.tokens_to_take(match, has_draft_model=has_draft_model)

    def on_tree(self, shares: Sequence[float]) -> None:
        """Notes the draft's probability of each token of the finished tree."""
        self._shares = list(shares)

    def observe(self, round_: Round) -> None:
        self._inner.observe(round_)
        if round_.tree is not None and len(round_.tree) == len(self._shares):
            self._observe_tree(round_.tree, round_.draft_ids[: round_.num_accepted])

    def _observe_tree(self, tree: DraftTree, accepted: Sequence[int]) -> None:
        index = ROOT
        for token in (*accepted, None):
            children = tree.children(index)
            found = None if token is None else tree.child(index, token)
            self.acceptance.observe(
                [self._shares[child] for child in children], None if found is None else children.index(found)
            )
            if found is None:
                return
            index = found

    def next_tokens(self, branchings: Sequence[Branching], num_drafted: int, depth: int) -> tuple[list[int], bool]:
        """Decides which tokens to draw next.

        The tree is continued best first, as if one token of mean acceptance followed every further one. Those that
        others would follow are drawn and fed to the draft in one pass; if there are none, or the pass does not pay,
        the rest of the tree is drawn without a further pass.

        Args:
            branchings: All tokens that may be drawn.
            num_drafted: Tokens drawn so far.
            depth: Longest path.

        Returns:
            Of each token, in order, the index of its branching; and whether they are to be fed.
        """
        taken, fed, values = self._best_first(branchings, self.num_nodes - num_drafted, depth)
        if not self._is_fixed:
            size = self._best_size(values, num_drafted)
            taken = [(branching, order, score) for branching, order, score in taken if order < size]
            fed = {order: follower for order, follower in fed.items() if follower < size}
        frontier = [(branching, score) for branching, order, score in taken if order in fed]
        if frontier and self._pays(sum(score for _, score in frontier) * self.acceptance.mean):
            return [branching for branching, _ in frontier], True
        if fed:
            # Without the pass, other tokens take the place of those that would follow.
            taken, _, values = self._best_first(branchings, self.num_nodes - num_drafted, 0)
            size = len(values) if self._is_fixed else self._best_size(values, num_drafted)
            taken = taken[:size]
        return [branching for branching, _, _ in taken], False

    def _best_first(
        self, branchings: Sequence[Branching], num_left: int, depth: int
    ) -> tuple[list[tuple[int, int, float]], dict[int, int], list[float]]:
        """Returns the real tokens with their order and score, the order of each one's first follower, all scores."""
        taken: list[tuple[int, int, float]] = []
        followers: dict[int, int] = {}
        values: list[float] = []
        heap = [(-self._score(b, b.num_taken), index, b.num_taken, -1, b.depth) for index, b in enumerate(branchings)]
        heapify(heap)
        while heap and len(values) < num_left:
            negative, index, position, leader, at = heappop(heap)
            if negative == 0.0:
                break
            order = len(values)
            values.append(-negative)
            if leader < 0:
                taken.append((index, order, -negative))
                branching = branchings[index]
                heappush(heap, (-self._score(branching, position + 1), index, position + 1, -1, at))
            else:
                followers.setdefault(leader, order)
            if at + 1 < depth:
                heappush(heap, (negative * self.acceptance.mean, index, 0, order if leader < 0 else leader, at + 1))
        return taken, followers, values

    def _score(self, branching: Branching, position: int) -> float:
        shares = branching.shares
        return branching.reach * self.acceptance.estimate(shares[position]) if position < len(shares) else 0.0

    def _best_size(self, values: Sequence[float], num_drafted: int) -> int:
        """Returns how many further tokens gain most: their expected number, less what their rows cost."""
        assert self._prices is not None
        costs, rate = self._prices.costs, self._prices.rate
        size, best, gain = 0, 0.0, 0.0
        here = costs.optimistic_seconds(num_drafted + 1)
        for number, value in enumerate(values[: max(costs.longest_trial - num_drafted, 0)], 1):
            gain += value
            net = gain - rate * (costs.optimistic_seconds(num_drafted + number + 1) - here)
            if net > best:
                size, best = number, net
        return size

    def _pays(self, gain: float) -> bool:
        """Returns whether a pass of the draft is worth its time."""
        return self._prices is None or gain > self._prices.rate * self._prices.draft_cost.seconds
