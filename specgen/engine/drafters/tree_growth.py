"""Holds a tree of drafted tokens while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT
from specgen.engine.draft_length.tree_plan import Branching
from specgen.engine.transfer import ids_on


@dataclass(slots=True)
class Candidates:
    """What may follow one token of the draft.

    Args:
        ids: The likeliest tokens, best first; used if nothing is drawn.
        rest: `[logits]`: the distribution to draw the next token from, without those that were drawn; None: greedy.
    """

    ids: list[int]
    rest: Tensor | None


@dataclass(slots=True)
class Growth:
    """A tree while it grows. Tokens have the order in which they were drawn.

    Args:
        ids: The text.
        tokens: Numbers, or `[1]` each on the draft's device if they were drawn: reading them would wait for it.
        rows: `[1, logits]` each, the distributions that the tokens were drawn from; None: the token was not drawn.
        positions: Tokens with the same parent that were drawn before each token.
        branchings: What may follow each token that the draft read, and the text; `candidates` has their tokens.
        fed: Row in the draft's own tree of each token that it read.
        pass_rows: Tokens of each pass of the draft so far; the first one read the end of the text.
        length: Of the text, which may grow later.
    """

    ids: Sequence[int]
    tokens: list[Any] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[Tensor | None] = field(default_factory=list)
    branchings: list[Branching] = field(default_factory=list)
    candidates: list[Candidates] = field(default_factory=list)
    fed: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    pass_rows: list[int] = field(default_factory=list)
    length: int = 0

    def ids_of(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """Returns tokens, `[n]`. Reads nothing."""
        tokens = [self.tokens[index] for index in indices]
        return torch.cat(tokens) if tokens and isinstance(tokens[0], Tensor) else ids_on(device, tokens)

    def graft(self, tokens: Sequence[int]) -> None:
        """Adds a path from the root; tokens that are there already are not added again."""
        parent = ROOT
        for token in tokens:
            there = (i for i, above in enumerate(self.parents) if above == parent and self.tokens[i] == token)
            found = next(there, None)
            if found is None:
                found = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.shares.append(None)
                self.positions.append(0)
                self.rows.append(None)
            parent = found

    def rows_along(self, tokens: Sequence[int]) -> list[int]:
        """Returns the draft's rows of the path that has these tokens, as far as the draft read them."""
        rows: list[int] = []
        parent = ROOT
        for token in tokens:
            read = (i for i in self.fed if i != ROOT and self.parents[i] == parent and int(self.tokens[i]) == token)
            found = next(read, None)
            if found is None:
                break
            rows.append(self.fed[found])
            parent = found
        return rows

    def preorder(self) -> list[int]:
        """Returns the tokens' indices, each followed by all that were drafted after it."""
        order: list[int] = []
        waiting = [index for index, parent in enumerate(self.parents) if parent == ROOT][::-1]
        while waiting:
            order.append(waiting.pop())
            waiting += [index for index, parent in enumerate(self.parents) if parent == order[-1]][::-1]
        return order
