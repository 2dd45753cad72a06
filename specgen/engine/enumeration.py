"""Enumerates every outcome of the decoding loop on toy models, with its exact probability.

This proves without statistics that sampling keeps the target's distribution: the loop runs once per outcome of its
random choices, and the probabilities of the outcomes are summed. Used by `specgen verify` and by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT

Result = TypeVar("Result")


class TableModel:
    """A target whose logits are a fixed row per last token. Asserts the cache rule on every call."""

    can_branch = True

    def __init__(self, logits_by_last_id: Tensor) -> None:
        self.table = logits_by_last_id
        self.vocab_size = logits_by_last_id.shape[1]
        self.num_embeddings = logits_by_last_id.shape[0]
        self.device = torch.device("cpu")
        self.length = 0
        self.cached_ids: list[int] = []
        self.num_forwards = 0
        self._tree: list[tuple[int, int]] = []
        """Token and parent of each row after the cached tokens."""

    def feed(self, ids: Sequence[int]) -> None:
        assert list(ids[: self.length]) == self.cached_ids, "the cache is not a prefix of the text"
        self._tree = []
        self.cached_ids = list(ids)
        self.length = len(self.cached_ids)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        whole = [*ids, *([] if tail is None else tail.tolist())]
        assert 1 <= num_last <= len(whole) - self.length
        self.feed(whole)
        self.num_forwards += 1
        return self.table[torch.tensor(whole[-num_last:])].clone()

    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        first = len(self._tree)
        assert all(parent < first + index for index, parent in enumerate(parents)), "a row comes before its parent"
        self._tree += zip(tokens.tolist(), parents, strict=True)
        self.num_forwards += 1
        return self.table[tokens].clone()

    def keep_rows(self, rows: Sequence[int]) -> None:
        parents = [self._tree[row][1] for row in rows]
        assert parents == [ROOT, *rows[:-1]][: len(rows)], "the rows are not a path"
        self.cached_ids += [self._tree[row][0] for row in rows]
        self.length = len(self.cached_ids)
        self._tree = []

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self._tree = []
        self.length = length
        self.cached_ids = self.cached_ids[:length]


@dataclass(slots=True)
class Path:
    """One outcome of a random run and its probability."""

    choices: list[int] = field(default_factory=list)
    num_used: int = 0
    num_options: list[int] = field(default_factory=list)
    probability: float = 1.0


class ScriptedRandomness:
    """Replaces random choices by scripted ones, and multiplies their probabilities."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _choose(self, probabilities: Sequence[float]) -> int:
        """Returns the scripted one of the options with a probability above 0."""
        path = self.path
        possible = [option for option, probability in enumerate(probabilities) if probability > 0]
        if path.num_used == len(path.choices):
            path.choices.append(0)
        choice = possible[path.choices[path.num_used]]
        path.num_options.append(len(possible))
        path.num_used += 1
        path.probability *= probabilities[choice]
        return choice

    def accept(self, probabilities: Tensor) -> Tensor:
        return torch.tensor([bool(self._choose([p, 1 - p]) == 0) for p in probabilities.tolist()], dtype=torch.bool)

    def draw(self, probs: Tensor) -> Tensor:
        return torch.tensor(self._choose(probs.tolist()))


def every_outcome(run: Callable[[ScriptedRandomness], Result]) -> Iterator[tuple[float, Result]]:
    """Calls `run` once per outcome of its choices, and yields the outcome's probability and result."""
    choices: list[int] = []
    while True:
        path = Path(choices=choices)
        result = run(ScriptedRandomness(path))
        yield path.probability, result
        while path.choices and path.choices[-1] + 1 == path.num_options[len(path.choices) - 1]:
            path.choices.pop()
        if not path.choices:
            return
        choices = [*path.choices[:-1], path.choices[-1] + 1]
