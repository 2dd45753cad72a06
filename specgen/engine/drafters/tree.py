"""Drafts a tree with a small language model: one pass of the draft continues several branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, path_to
from specgen.core.errors import NumericalError
from specgen.engine.contract import DRAFT_NOT_FINITE, TreeModel
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.tree_length import Branching, TreeLength
from specgen.engine.drafters.base import empty_draft
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import penalize, token_distributions
from specgen.engine.transfer import ids_on
from specgen.engine.verification import Draft


@dataclass(slots=True)
class _Candidates:
    """What may follow one token of the draft.

    Args:
        columns: Columns of the likeliest tokens, best first; used if nothing is drawn.
        rest: `[logits]`: the distribution to draw the next token from, without those that were drawn; None: greedy.
    """

    columns: list[int]
    rest: Tensor | None


@dataclass(slots=True)
class _Growth:
    """A tree while it grows. Tokens have the order in which they were drawn.

    Args:
        ids: The text.
        rows: `[1, vocab]` each, the distributions that the tokens were drawn from; empty if nothing was drawn.
        branchings: What may follow each token that the draft read, and the text; `candidates` has their tokens.
        fed: Row in the draft's own tree of each token that it read.
        num_passes: Passes of the draft so far.
    """

    ids: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    branchings: list[Branching] = field(default_factory=list)
    candidates: list[_Candidates] = field(default_factory=list)
    fed: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    num_passes: int = 1

    def path(self, index: int) -> list[int]:
        """Returns the tokens from the root to a token."""
        return [self.tokens[node] for node in path_to(self.parents, index)]

    def graft(self, tokens: Sequence[int], one_hot: Callable[[int], Tensor] | None) -> None:
        """Adds a path from the root; tokens that are there already are not added again.

        Args:
            tokens: The path.
            one_hot: Distribution `[1, vocab]` of a token that was not drawn; None if no tokens are.
        """
        parent = ROOT
        for token in tokens:
            there = (i for i, above in enumerate(self.parents) if above == parent and self.tokens[i] == token)
            found = next(there, None)
            if found is None:
                found = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.shares.append(None)
                if one_hot is not None:
                    self.rows.append(one_hot(token))
            parent = found

    def preorder(self) -> list[int]:
        """Returns the tokens' indices, each followed by all that were drafted after it."""
        order: list[int] = []
        waiting = [index for index, parent in enumerate(self.parents) if parent == ROOT][::-1]
        while waiting:
            order.append(waiting.pop())
            waiting += [index for index, parent in enumerate(self.parents) if parent == order[-1]][::-1]
        return order


class TreeDrafter(ModelDrafter):
    """Proposes trees if the policy is a `TreeLength`, else what `ModelDrafter` proposes.

    The model is a `TreeModel`. Accepted tokens are not kept in its cache: it reads them again in one pass with the
    target's own token.
    """

    def _make_draft(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        if not isinstance(draft_length, TreeLength):
            return super()._make_draft(ids, limit, draft_length)
        if not draft_length.should_draft():
            return empty_draft()
        growth = _Growth(ids)
        if self._seen is not None:
            self._seen.update(ids)
        self._branch(growth, [ROOT], self.model.logits(ids, 1), draft_length)
        while True:
            step = draft_length.next_tokens(growth.branchings, len(growth.tokens), limit)
            new = [self._take(growth, index) for index in step.branchings]
            if not step.is_fed:
                break
            self._branch(growth, new, self._pass(growth, new), draft_length)
        is_drawn = growth.candidates[0].rest is not None
        for match, count in zip(draft_length.matches, step.num_matched, strict=True):
            growth.graft(match.ids[:count], self._one_hot if is_drawn else None)
        return _draft_of(growth, draft_length)

    def _one_hot(self, token: int) -> Tensor:
        """Returns the distribution of a token of a match, which was not drawn."""
        return torch.zeros(1, self._vocab_size, device=self.model.device).index_fill_(
            1, torch.tensor([token], device=self.model.device), 1.0
        )

    def _pass(self, growth: _Growth, new: Sequence[int]) -> Tensor:
        """Feeds tokens of the tree; returns the logits after each of them."""
        assert isinstance(self.model, TreeModel), "the draft model computes no trees"
        growth.num_passes += 1
        first = len(growth.fed) - 1
        growth.fed.update({index: first + number for number, index in enumerate(new)})
        tokens = ids_on(self.model.device, [growth.tokens[index] for index in new])
        return self.model.tree_logits(tokens, [growth.fed[growth.parents[index]] for index in new])

    def _take(self, growth: _Growth, number: int) -> int:
        """Draws the next token of a branching; returns its index."""
        branching, candidates = growth.branchings[number], growth.candidates[number]
        if candidates.rest is None:
            column = candidates.columns[branching.num_taken]
        else:
            column = int(self._sampler.randomness.draw(candidates.rest))
            growth.rows.append(self._over_target_vocab(candidates.rest[None]))
            rest = candidates.rest.index_fill(0, torch.tensor([column], device=candidates.rest.device), 0.0)
            candidates.rest = rest / rest.sum()
        growth.tokens.append(column if self._columns is None else int(self._columns[column]))
        growth.parents.append(branching.node)
        growth.shares.append(branching.shares[branching.num_taken])
        branching.num_taken += 1
        return len(growth.tokens) - 1

    def _branch(self, growth: _Growth, nodes: Sequence[int], logits: Tensor, policy: TreeLength) -> None:
        """Adds the tokens that may follow `nodes`, given the logits after each of them."""
        best = 0.0
        for node, row in zip(nodes, torch.split(logits, 1), strict=True):
            path = growth.path(node)
            shares, candidates = self._candidates(row, growth.ids, path, policy.num_nodes)
            reach = 1.0
            if node != ROOT:
                above = next(b for b in growth.branchings if b.node == growth.parents[node])
                share = growth.shares[node]
                reach = above.reach * (1.0 if share is None else policy.acceptance.estimate(share))
            growth.branchings.append(Branching(node, len(path), reach, shares))
            growth.candidates.append(candidates)
            best = max(best, shares[0])
        if policy.uses_confidence:
            policy.on_token(best)

    def _candidates(
        self, logits: Tensor, ids: Sequence[int], path: Sequence[int], count: int
    ) -> tuple[list[float], _Candidates]:
        """Returns the probabilities of the likeliest tokens after a path, descending, and the tokens."""
        settings, noise = self._sampler.settings, self._sampler.noise
        seen = None if self._seen is None else self._own_columns(self._seen.row(ids_on(logits.device, path)))
        if settings.is_greedy:
            probs = penalize(logits, settings.repetition_penalty, seen).softmax(dim=-1)[0]
        else:
            made = token_distributions(logits, settings, seen).probs
            assert made is not None
            probs = made[0]
        shares = probs
        if noise is not None:
            # The target draws with the same noise, so its token is likely to be one with a large ratio here.
            row = self._own_columns(noise.rows(len(ids) + len(path), 1))
            assert row is not None
            ratios = probs / row[0].to(probs.device)
            shares = ratios / ratios.sum()
        top = shares.topk(min(count, shares.shape[0]))
        values: list[float] = top.values.tolist()
        if not isfinite(values[0]):
            raise NumericalError(DRAFT_NOT_FINITE)
        is_drawn = not settings.is_greedy and noise is None
        possible = [value for value in values if value > 0.0]
        return possible, _Candidates(top.indices.tolist(), probs if is_drawn else None)


def _draft_of(growth: _Growth, policy: TreeLength) -> Draft:
    """Returns the finished tree in preorder."""
    if not growth.tokens:
        return empty_draft()
    order = growth.preorder()
    places = {index: place for place, index in enumerate(order)} | {ROOT: ROOT}
    policy.on_tree([growth.shares[index] for index in order])
    return Draft(
        torch.tensor([growth.tokens[index] for index in order], dtype=torch.int64),
        torch.cat([growth.rows[index] for index in order]) if growth.rows else None,
        parents=tuple(places[growth.parents[index]] for index in order),
        num_passes=growth.num_passes,
    )
