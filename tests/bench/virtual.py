"""Runs toy models on a virtual clock: a forward pass takes the time that a rule returns, everything else takes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.bench.configurations import Host
from specgen.bench.open_models import open_configurations
from specgen.bench.results import BenchReport, BenchSettings, Setting
from specgen.bench.runner import Benchmark
from specgen.core.draft_name import LOOKUP
from specgen.core.settings import ModelSettings, PairSettings
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import Message
from specgen.text.prompts import PromptEntry
from tests.toys import draft_named_by, successors, token_id

Rule = Callable[["VirtualClock", bool, int], float]
"""Clock, whether the target runs, number of tokens: seconds of a pass."""


def plain_rule(clock: VirtualClock, is_target: bool, num_tokens: int) -> float:
    """Returns v(n) = 1 + (n - 1) / 10 for the target, and 0.2 for any pass of the draft."""
    return 1 + (num_tokens - 1) / 10 if is_target else 0.2


class VirtualClock:
    """Advances with passes only. `target` is the target's module; any other is a draft."""

    def __init__(self, rule: Rule = plain_rule) -> None:
        self.now = 0.0
        self.rule = rule
        self.target: Any = None

    def __call__(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = CachedModel._forward

        def timed(model: CachedModel, new: Any, num_last: int) -> Any:
            self.now += self.rule(self, model.module is self.target, int(new.shape[0]))
            return forward(model, new, num_last)

        monkeypatch.setattr(CachedModel, "_forward", timed)
        tree_logits = DecoderModel.tree_logits

        def timed_tree(model: DecoderModel, tokens: Any, parents: Any) -> Any:
            self.now += self.rule(self, model.module is self.target, int(tokens.shape[0]))
            return tree_logits(model, tokens, parents)

        monkeypatch.setattr(DecoderModel, "tree_logits", timed_tree)


def model(folder: Path) -> ModelSettings:
    return ModelSettings(str(folder), quant="none", dtype="float32", device="cpu")


def benchmark(
    clock: VirtualClock,
    target: Path,
    drafts: dict[str, Path | None],
    lengths: tuple[int, ...],
    config: BenchSettings,
    num_prompts: int = 2,
    trees: tuple[int, ...] = (0,),
) -> Benchmark:
    """Makes a benchmark of toys; a draft of None is lookup."""
    baseline = resolve_pair(PairSettings(model(target), drafter="none"))
    pairs = {
        name: baseline.with_draft(LOOKUP, ModelSettings(""))
        if path is None
        else baseline.with_draft(*draft_named_by(model(path)))
        for name, path in drafts.items()
    }
    settings = [
        Setting("model" if drafts[n] else "lookup", n, n, k, num_tree_nodes=tree)
        for n in drafts
        for k in lengths
        for tree in trees
    ]
    configurations = open_configurations(baseline, pairs, settings)
    clock.target = configurations[0].models.target.module
    prompts = [PromptEntry(f"p{i}", f"c{i}", (Message("user", "hello"),)) for i in range(num_prompts)]
    return Benchmark(configurations, prompts, config, host=Host(clock=clock, wall_clock=clock))


def finished(made: Benchmark) -> BenchReport:
    for _ in made:
        pass
    return made.report()


def expected_rounds(num_tokens: int, k: int, *, wrong_after: str = " fox") -> list[tuple[int, int]]:
    """Returns (drafted, accepted) of every round, by following the toy's chain: an oracle without the engine."""
    table = successors()
    last, num_left, rounds = token_id("\n"), num_tokens, []
    while num_left:
        num_drafted = min(k, num_left - 1)
        at, num_accepted = last, 0
        while num_accepted < num_drafted and at != token_id(wrong_after):
            at, num_accepted = table[at], num_accepted + 1
        last = table[at]
        num_left -= num_accepted + 1
        rounds.append((num_drafted, num_accepted))
    return rounds
