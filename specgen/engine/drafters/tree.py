"""Drafts a tree with a small language model: one pass of the draft continues several branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, path_to
from specgen.core.errors import NumericalError
from specgen.engine.contract import DRAFT_NOT_FINITE, TreeModel, TreeTarget
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.draft_length.tree_plan import Branching
from specgen.engine.drafters.base import empty_draft
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import penalize, token_distributions
from specgen.engine.transfer import ids_on
from specgen.engine.truncation import largest
from specgen.engine.verification import Draft


@dataclass(slots=True)
class _Candidates:
    """What may follow one token of the draft.

    Args:
        ids: The likeliest tokens, best first; used if nothing is drawn.
        rest: `[logits]`: the distribution to draw the next token from, without those that were drawn; None: greedy.
    """

    ids: list[int]
    rest: Tensor | None


@dataclass(slots=True)
class _Growth:
    """A tree while it grows. Tokens have the order in which they were drawn.

    Args:
        ids: The text.
        tokens: Numbers, or `[1]` each on the draft's device if they were drawn: reading them would wait for it.
        rows: `[1, vocab]` each, the distributions that the tokens were drawn from; empty if nothing was drawn.
        branchings: What may follow each token that the draft read, and the text; `candidates` has their tokens.
        fed: Row in the draft's own tree of each token that it read.
        pass_rows: Tokens of each pass of the draft so far; the first one read the end of the text.
        length: Of the text, which may grow later.
    """

    ids: Sequence[int]
    tokens: list[Any] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    branchings: list[Branching] = field(default_factory=list)
    candidates: list[_Candidates] = field(default_factory=list)
    fed: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    pass_rows: list[int] = field(default_factory=list)
    length: int = 0

    def ids_of(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """Returns tokens, `[n]`. Reads nothing."""
        tokens = [self.tokens[index] for index in indices]
        return torch.cat(tokens) if tokens and isinstance(tokens[0], Tensor) else ids_on(device, tokens)

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


class TreeDrafter(ModelDrafter):
    """Proposes trees if the policy is a `TreeLength`, else what `ModelDrafter` proposes.

    The model is a `TreeModel`. If it can also keep rows of a tree, accepted tokens that it has read stay in its cache.
    Otherwise it reads them again, in one pass with the target's own token.
    """

    _last: _Growth | None = None
    """The tree of the last round, while the model has its rows."""

    @cached_property
    def _keeper(self) -> TreeTarget | None:
        """The model, if it keeps rows of trees."""
        # A recorded pass over a few more rows costs the same, and finding the path would wait for the device.
        return self.model if isinstance(self.model, TreeTarget) and self._recording is None else None

    def feed(self, ids: Sequence[int]) -> None:
        """As in `Drafter`."""
        self._last = None
        super().feed(ids)

    def rewind(self, length: int) -> None:
        """As in `Drafter`; the rows of a tree stay if the text goes on after it."""
        if self._last is not None and length >= self._last.length:
            return
        self._last = None
        super().rewind(length)

    def release(self) -> None:
        """As in `Drafter`."""
        self._last = None
        super().release()

    def _keep_accepted(self, ids: Sequence[int]) -> None:
        """Keeps the rows of the last tree that became text, but for the last token, after which logits are needed."""
        last, self._last = self._last, None
        if last is not None and self._keeper is not None:
            rows = last.rows_along(ids[last.length : -1])
            if rows:
                self._keeper.keep_rows(rows)

    def _make_draft(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        if not isinstance(draft_length, TreeLength):
            self._last = None
            return super()._make_draft(ids, limit, draft_length)
        if not draft_length.should_draft():
            return empty_draft()
        self._keep_accepted(ids)
        growth = _Growth(ids, pass_rows=[self._num_unread(ids)], length=len(ids))
        if self._seen is not None:
            self._seen.update(ids)
        self._branch(growth, [ROOT], self.model.logits(ids, 1), draft_length)
        while True:
            step = draft_length.next_tokens(growth.branchings, len(growth.tokens), limit)
            new = [self._take(growth, index) for index in step.branchings]
            if not step.is_fed:
                break
            self._branch(growth, new, self._pass(growth, new), draft_length)
        self._last = None if self._keeper is None else growth
        is_drawn = growth.candidates[0].rest is not None
        if is_drawn and growth.tokens and any(step.num_matched):
            growth.tokens = torch.cat(growth.tokens).tolist()  # to compare them with those of the matches
        for match, count in zip(draft_length.matches, step.num_matched, strict=True):
            growth.graft(match.ids[:count], self._one_hot if is_drawn else None)
        return _draft_of(growth, draft_length, self.model.device)

    def _one_hot(self, token: int) -> Tensor:
        """Returns the distribution of a token of a match, which was not drawn."""
        return torch.zeros(1, self._vocab_size, device=self.model.device).index_fill_(
            1, torch.tensor([token], device=self.model.device), 1.0
        )

    def _pass(self, growth: _Growth, new: Sequence[int]) -> Tensor:
        """Feeds tokens of the tree; returns the logits after each of them."""
        assert isinstance(self.model, TreeModel), "the draft model computes no trees"
        growth.pass_rows.append(len(new))
        first = len(growth.fed) - 1
        growth.fed.update({index: first + number for number, index in enumerate(new)})
        tokens = growth.ids_of(new, self.model.device)
        return self.model.tree_logits(tokens, [growth.fed[growth.parents[index]] for index in new])

    def _take(self, growth: _Growth, number: int) -> int:
        """Draws the next token of a branching; returns its index."""
        branching, candidates = growth.branchings[number], growth.candidates[number]
        if candidates.rest is None:
            token: int | Tensor = candidates.ids[branching.num_taken]
        else:
            column = self._sampler.randomness.draw(candidates.rest).view(1)
            growth.rows.append(self._over_target_vocab(candidates.rest[None]))
            rest = candidates.rest.index_fill(0, column, 0.0)
            candidates.rest = rest / rest.sum()
            token = self._ids_of(column).to(self.model.device)
        growth.tokens.append(token)
        growth.parents.append(branching.node)
        growth.shares.append(branching.shares[branching.num_taken])
        branching.num_taken += 1
        return len(growth.tokens) - 1

    def _branch(self, growth: _Growth, nodes: Sequence[int], logits: Tensor, policy: TreeLength) -> None:
        """Adds the tokens that may follow `nodes`, given the logits after each of them. Reads the device once."""
        paths = [path_to(growth.parents, node) for node in nodes]
        rows = [self._after_path(row, growth, path) for row, path in zip(torch.split(logits, 1), paths, strict=True)]
        found = self._likeliest([shares for shares, _ in rows], policy.num_nodes)
        for node, path, (shares, ids), (_, drawn_from) in zip(nodes, paths, found, rows, strict=True):
            reach = 1.0
            if node != ROOT:
                above = next(b for b in growth.branchings if b.node == growth.parents[node])
                share = growth.shares[node]
                reach = above.reach * (1.0 if share is None else policy.acceptance.estimate(share))
            growth.branchings.append(Branching(node, len(path), reach, shares))
            growth.candidates.append(_Candidates(ids, drawn_from))
        if policy.uses_confidence:
            policy.on_token(max(shares[0] for shares, _ in found))

    def _after_path(self, logits: Tensor, growth: _Growth, path: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Returns what may follow a path, `[logits]` each: by what candidates are ranked, and what they are drawn from.

        The latter is None if nothing is drawn.
        """
        settings, noise = self._sampler.settings, self._sampler.noise
        width = logits.shape[1]
        seen = None if self._seen is None else self._seen.row(growth.ids_of(path, logits.device))
        seen = self._own_columns(seen, width)
        if settings.is_greedy:
            probs = penalize(logits, settings.repetition_penalty, seen).softmax(dim=-1)[0]
        else:
            made = token_distributions(logits, settings, seen).probs
            assert made is not None
            probs = made[0]
        if noise is None:
            return probs, None if settings.is_greedy else probs
        # The target draws with the same noise, so its token is likely to be one with a large ratio here.
        row = self._own_columns(noise.rows(len(growth.ids) + len(path), 1), width)
        assert row is not None
        ratios = probs / row[0].to(probs.device)
        return ratios / ratios.sum(), None

    def _likeliest(self, rows: Sequence[Tensor], count: int) -> list[tuple[list[float], list[int]]]:
        """Reads the likeliest tokens of each row `[logits]`, best first: their shares above 0, and their ids."""
        shares = rows[0][None] if len(rows) == 1 else torch.stack(list(rows))
        values, columns = largest(shares, min(count, shares.shape[1]))
        # One read is enough: float32 holds ids below 2^24 exactly.
        numbers = torch.stack([values, self._ids_of(columns).to(values.dtype)], dim=1).tolist()
        if not all(isfinite(values[0]) for values, _ in numbers):
            raise NumericalError(DRAFT_NOT_FINITE)
        return [([value for value in values if value > 0.0], [int(id_) for id_ in ids]) for values, ids in numbers]

    def _ids_of(self, columns: Tensor) -> Tensor:
        """Returns the ids of columns of the logits, in the same shape."""
        return columns if self._columns is None else self._columns[columns]


def _draft_of(growth: _Growth, policy: TreeLength, device: torch.device) -> Draft:
    """Returns the finished tree in preorder."""
    if not growth.tokens:
        return empty_draft()
    order = growth.preorder()
    places = {index: place for place, index in enumerate(order)} | {ROOT: ROOT}
    policy.on_tree([growth.shares[index] for index in order])
    return Draft(
        growth.ids_of(order, device),
        torch.cat([growth.rows[index] for index in order]) if growth.rows else None,
        parents=tuple(places[growth.parents[index]] for index in order),
        num_passes=len(growth.pass_rows),
        pass_rows=tuple(growth.pass_rows),
    )
