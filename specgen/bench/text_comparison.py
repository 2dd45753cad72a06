"""Two greedy answers in; where they part, and whether rounding can have decided it, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

from specgen.bench.results import BASELINE, Difference, Run
from specgen.core.results import LogitGap, ModelInfo
from specgen.core.settings import SamplingSettings
from specgen.engine.contract import TargetModel
from specgen.runtime.near_ties import logit_gap


class Comparison:
    """Collects where greedy answers part from the target's own, each difference looked into once.

    Args:
        target: Its cache is emptied whenever a difference is looked into.
        info: The target as it really runs.
        sampling: Only greedy answers are compared.
        alone: Index of the target alone; only settings of its engine may be observed.
    """

    def __init__(self, target: TargetModel, info: ModelInfo, sampling: SamplingSettings, alone: int = BASELINE) -> None:
        self._target = target
        self._info = info
        self.alone = alone
        self._is_wanted = sampling.is_greedy
        self._found: dict[tuple[int, int], Difference] = {}
        self._looked_into: set[tuple[int, int, int, int | None, int | None]] = set()
        self.compared: set[tuple[int, int]] = set()
        """Setting and prompt of every answer that was held beside the target's own."""

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The worst one of each setting and prompt."""
        return tuple(self._found.values())

    def observe(self, runs: Sequence[Run], prompt_ids: Sequence[int]) -> None:
        """Compare the runs of one prompt with the target alone among them."""
        alone = next((run for run in runs if run.setting == self.alone), None)
        if alone is None or not self._is_wanted:
            return
        for run in (other for other in runs if other is not alone):
            key = (run.setting, run.prompt)
            known = self._found.get(key)
            self.compared.add(key)
            position = first_difference(alone.token_ids, run.token_ids)
            # A near tie must not hide what another repeat shows, there or elsewhere.
            if position is None or (known is not None and not known.is_near_tie):
                continue
            case = (*key, position, _at(alone.token_ids, position), _at(run.token_ids, position))
            if case in self._looked_into:
                continue
            self._looked_into.add(case)
            gap = self._gap(prompt_ids, alone.token_ids, run.token_ids, position)
            found = Difference(run.setting, run.prompt, position, gap)
            if known is None or not found.is_near_tie:
                self._found[key] = found

    def _gap(self, prompt_ids: Sequence[int], alone: Sequence[int], drafted: Sequence[int], position: int) -> LogitGap:
        """An answer that merely ended early is infinitely different."""
        if position >= len(alone) or position >= len(drafted):
            return LogitGap(math.inf, 0.0)
        text = [*prompt_ids, *alone[:position]]
        return logit_gap(self._target, self._info, text, alone[position], drafted[position])


def _at(ids: Sequence[int], position: int) -> int | None:
    return ids[position] if position < len(ids) else None


def first_difference(alone: Sequence[int], drafted: Sequence[int]) -> int | None:
    """Index of the first token that differs, a missing one included."""
    return next((i for i, (a, b) in enumerate(zip_longest(alone, drafted)) if a != b), None)
