"""Chance that can be walked and a target that is a table: every outcome of the real loop, weighed exactly.

The proof that sampling keeps the target's law rests on no statistics: the loop is run once per outcome of its choices,
and the probabilities of the outcomes are summed. Used by `specgen verify` and by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class TableModel:
    """A target whose next-token logits are a fixed row per last token. Checks the cache rule on every call."""

    def __init__(self, logits_by_last_id: Tensor) -> None:
        self.table = logits_by_last_id
        self.vocab_size = logits_by_last_id.shape[1]
        self.num_embeddings = logits_by_last_id.shape[0]
        self.device = torch.device("cpu")
        self.length = 0
        self.held: list[int] = []
        self.num_forwards = 0

    def feed(self, ids: Sequence[int]) -> None:
        assert list(ids[: self.length]) == self.held, "the cache holds no prefix of the text"
        self.held = list(ids)
        self.length = len(self.held)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        whole = [*ids, *([] if tail is None else tail.tolist())]
        assert 1 <= num_last <= len(whole) - self.length
        self.feed(whole)
        self.num_forwards += 1
        return self.table[torch.tensor(whole[-num_last:])].clone()

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length
        self.held = self.held[:length]


@dataclass(slots=True)
class Path:
    """One outcome of a random run and its probability."""

    choices: list[int] = field(default_factory=list)
    num_used: int = 0
    num_options: list[int] = field(default_factory=list)
    probability: float = 1.0


class ScriptedRandomness:
    """Chance replaced by a script of choices, so that every outcome can be walked and weighed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _choose(self, probabilities: Sequence[float]) -> int:
        """The scripted one of the options that can happen."""
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
    """Run `run` once per outcome of its choices; yields the outcome's probability and result."""
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
