"""Drafts a tree with a small language model: one pass of the draft continues several branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isfinite

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
from specgen.engine.drafters.tree_growth import Candidates, Growth
from specgen.engine.sampling import penalize, token_distributions
from specgen.engine.transfer import ids_on
from specgen.engine.truncation import largest
from specgen.engine.verification import Draft


class TreeDrafter(ModelDrafter):
    """Proposes trees if the policy is a `TreeLength`, else what `ModelDrafter` proposes.

    The model is a `TreeModel`. If it can also keep rows of a tree, accepted tokens that it has read stay in its cache.
    Otherwise it reads them again, in one pass with the target's own token.
    """

    _last: Growth | None = None
    """The tree of the last round, while the model has its rows."""

    @cached_property
    def _keeper(self) -> TreeTarget | None:
        """The model, if it keeps rows of trees."""
        # A recorded pass over a few more rows costs the same, and finding the path would wait for the device.
        return self.model if isinstance(self.model, TreeTarget) and self._recording is None else None

    @cached_property
    def _tree_model(self) -> TreeModel:
        # Once: checking a protocol takes as long as a small operation.
        assert isinstance(self.model, TreeModel), "the draft model computes no trees"
        return self.model

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
        growth = Growth(ids, pass_rows=[self._num_unread(ids)], length=len(ids))
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
            growth.graft(match.ids[:count])
        return self._draft_of(growth, draft_length, is_drawn)

    def _draft_of(self, growth: Growth, policy: TreeLength, is_drawn: bool) -> Draft:
        """Returns the finished tree in preorder."""
        if not growth.tokens:
            return empty_draft()
        order = growth.preorder()
        places = {index: place for place, index in enumerate(order)} | {ROOT: ROOT}
        policy.on_tree([growth.shares[index] for index in order])
        ids = growth.ids_of(order, self.model.device)
        return Draft(
            ids,
            self._drawn_from([growth.rows[index] for index in order], ids) if is_drawn else None,
            parents=tuple(places[growth.parents[index]] for index in order),
            num_passes=len(growth.pass_rows),
            pass_rows=tuple(growth.pass_rows),
        )

    def _drawn_from(self, rows: Sequence[Tensor | None], ids: Tensor) -> Tensor:
        """Returns the distributions of tokens over the target's vocabulary; of one that was not drawn, a point mass."""
        drawn = [row for row in rows if row is not None]
        probs = self._over_target_vocab(torch.cat(drawn)) if drawn else None
        if probs is not None and len(drawn) == len(rows):
            return probs
        points = torch.zeros(len(rows), self._vocab_size, device=ids.device).scatter_(1, ids.unsqueeze(1), 1.0)
        if probs is None:
            return points
        places = ids_on(ids.device, [place for place, row in enumerate(rows) if row is not None])
        return points.to(probs.dtype).index_copy_(0, places, probs)

    def _pass(self, growth: Growth, new: Sequence[int]) -> Tensor:
        """Feeds tokens of the tree; returns the logits after each of them."""
        growth.pass_rows.append(len(new))
        first = len(growth.fed) - 1
        growth.fed.update({index: first + number for number, index in enumerate(new)})
        tokens = growth.ids_of(new, self.model.device)
        return self._tree_model.tree_logits(tokens, [growth.fed[growth.parents[index]] for index in new])

    def _take(self, growth: Growth, number: int) -> int:
        """Draws the next token of a branching; returns its index."""
        branching, candidates = growth.branchings[number], growth.candidates[number]
        if candidates.rest is None:
            token: int | Tensor = candidates.ids[branching.num_taken]
            growth.rows.append(None)
        else:
            column = self._sampler.randomness.draw(candidates.rest).view(1)
            growth.rows.append(candidates.rest[None])
            rest = candidates.rest.index_fill(0, column, 0.0)
            candidates.rest = rest / rest.sum()
            token = self._ids_of(column).to(self.model.device)
        growth.tokens.append(token)
        growth.parents.append(branching.node)
        growth.shares.append(branching.shares[branching.num_taken])
        growth.positions.append(branching.num_taken)
        branching.num_taken += 1
        return len(growth.tokens) - 1

    def _branch(self, growth: Growth, nodes: Sequence[int], logits: Tensor, policy: TreeLength) -> None:
        """Adds the tokens that may follow `nodes`, given the logits after each of them. Reads the device once."""
        paths = [path_to(growth.parents, node) for node in nodes]
        rows = [self._after_path(row, growth, path) for row, path in zip(torch.split(logits, 1), paths, strict=True)]
        found = self._likeliest([shares for shares, _ in rows], policy.num_nodes)
        for node, path, (shares, ids), (_, drawn_from) in zip(nodes, paths, found, rows, strict=True):
            reach = 1.0
            if node != ROOT:
                above = next(b for b in growth.branchings if b.node == growth.parents[node])
                share, position = growth.shares[node], growth.positions[node]
                reach = above.reach * (1.0 if share is None else policy.acceptance.estimate(share, position))
            growth.branchings.append(Branching(node, len(path), reach, shares))
            growth.candidates.append(Candidates(ids, drawn_from))
        if policy.uses_confidence:
            policy.on_token(max(shares[0] for shares, _ in found))

    def _after_path(self, logits: Tensor, growth: Growth, path: Sequence[int]) -> tuple[Tensor, Tensor | None]:
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
