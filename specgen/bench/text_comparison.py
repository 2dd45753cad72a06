"""Compares greedy answers with the baseline's, and decides whether rounding explains a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specgen.bench.results import BASELINE, Difference, Run
from specgen.core.comparison import first_difference
from specgen.core.results import LogitGap, ModelInfo
from specgen.core.settings import SamplingSettings
from specgen.engine.contract import TargetModel
from specgen.engine.near_ties import logit_gap


class TextComparison:
    """Collects the differences of greedy answers from the baseline's; each one is examined once.

    Args:
        target: Its cache is emptied whenever a difference is examined.
        info: The target as it really runs.
        sampling: Only greedy answers are compared.
        baseline: Index of the baseline; `observe` takes runs of its backend only.
    """

    def __init__(
        self, target: TargetModel, info: ModelInfo, sampling: SamplingSettings, baseline: int = BASELINE
    ) -> None:
        self.baseline = baseline
        self.compared: set[tuple[int, int]] = set()
        """Setting and prompt of every answer that was compared with the baseline's."""
        self._target, self._info = target, info
        self._is_enabled = sampling.is_greedy
        self._worst: dict[tuple[int, int], Difference] = {}
        self._examined: set[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = set()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The worst one of each setting and prompt."""
        return tuple(self._worst.values())

    def observe(self, runs: Sequence[Run], prompt_ids: Sequence[int]) -> None:
        """Compares the runs of one prompt with the baseline's run among them."""
        baseline = next((run for run in runs if run.setting == self.baseline), None)
        if baseline is None or not self._is_enabled:
            return
        for run in (other for other in runs if other is not baseline):
            key = (run.setting, run.prompt)
            known = self._worst.get(key)
            self.compared.add(key)
            position = first_difference(baseline.token_ids, run.token_ids)
            # A near tie must not hide a real difference that another repeat shows.
            if position is None or (known is not None and not known.is_near_tie):
                continue
            at = slice(position, position + 1)  # empty if the answer ended there
            case = (*key, position, baseline.token_ids[at], run.token_ids[at])
            if case in self._examined:
                continue
            self._examined.add(case)
            gap = self._gap(prompt_ids, baseline.token_ids, run.token_ids, position)
            difference = Difference(run.setting, run.prompt, position, gap)
            if known is None or not difference.is_near_tie:
                self._worst[key] = difference

    def _gap(self, prompt_ids: Sequence[int], baseline: Sequence[int], other: Sequence[int], position: int) -> LogitGap:
        """Returns the gap of the two tokens there; infinite if one answer ended earlier."""
        if position >= len(baseline) or position >= len(other):
            return LogitGap(math.inf, 0.0)
        text = [*prompt_ids, *baseline[:position]]
        return logit_gap(self._target, self._info, text, baseline[position], other[position])
