"""Orders the tokens that may continue a tree by the probability that they are accepted, before any is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush


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
class Candidate:
    """A token that may continue the tree.

    Args:
        order: Its place among all candidates, best first.
        value: Probability that it is accepted.
        source: Index of its branching; of a match: -1 - its number.
        leader: Order of the token that is drawn and fed to the draft before it; -1: it needs no pass of the draft.
    """

    order: int
    value: float
    source: int
    leader: int = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """The tokens of a tree's continuation, best first."""

    tokens: Sequence[Candidate]

    @property
    def fed(self) -> list[int]:
        """The branchings of the tokens that are fed to the draft: those that others would follow."""
        leaders = {token.leader for token in self.tokens}
        return [token.source for token in self.tokens if token.order in leaders]

    @property
    def drawn(self) -> list[int]:
        """The branchings of the tokens that can be drawn now."""
        return [token.source for token in self.tokens if token.leader < 0 <= token.source]

    def num_matched(self, num_matches: int) -> list[int]:
        """Returns how many of the tokens are those of each match."""
        return [sum(token.source == -1 - number for token in self.tokens) for number in range(num_matches)]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the candidates are weighed by.

    Args:
        score: Probability that the token of a branching at a position is accepted; 0 ends the branching.
        mean: Estimated acceptance of a token whose probability is not known yet.
        depth: Longest path.
        looks_further: Whether a token may follow one that is not drawn yet.
    """

    score: Callable[[Branching, int], float]
    mean: float
    depth: int
    looks_further: bool


def best_first(
    branchings: Sequence[Branching], reaches: Sequence[Sequence[float]], num_wanted: int, outlook: Outlook
) -> list[Candidate]:
    """Returns the best candidates, as if one token of mean acceptance followed every further one.

    Args:
        branchings: All tokens that may be drawn.
        reaches: Probability that the text follows each match up to each of its tokens.
        num_wanted: Candidates that need no further pass of the draft; as many of the others as are better are added.
        outlook: Weighs them.
    """
    found: list[Candidate] = []
    heap = [(-outlook.score(b, b.num_taken), index, b.num_taken, -1, b.depth) for index, b in enumerate(branchings)]
    heap += [(-reach[0], -1 - number, 0, -1, outlook.depth) for number, reach in enumerate(reaches)]
    heapify(heap)
    num_left = num_wanted
    while heap and num_left > 0:
        negative, source, position, leader, at = heappop(heap)
        if negative == 0.0:
            break
        order = len(found)
        found.append(Candidate(order, -negative, source, leader))
        num_left -= leader < 0
        if source < 0:
            reach = reaches[-1 - source]
            if position + 1 < len(reach):
                heappush(heap, (-reach[position + 1], source, position + 1, -1, at))
            continue
        if leader < 0:
            heappush(heap, (-outlook.score(branchings[source], position + 1), source, position + 1, -1, at))
        if at + 1 < outlook.depth and (leader < 0 or outlook.looks_further):
            heappush(heap, (negative * outlook.mean, source, 0, order if leader < 0 else leader, at + 1))
    return found


def plans_of(candidates: Sequence[Candidate], num_tokens: int) -> list[Plan]:
    """Returns the best continuations of at most `num_tokens` tokens, with 0, 1, 2, ... tokens fed to the draft."""
    leaders = list(dict.fromkeys(token.leader for token in candidates if token.leader >= 0))
    plans = []
    for num_fed in range(len(leaders) + 1):
        chosen = {-1, *leaders[:num_fed]}
        plans.append(Plan([token for token in candidates if token.leader in chosen][:num_tokens]))
    return plans
