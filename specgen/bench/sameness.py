"""Two greedy answers in; where they part, and whether rounding can have decided it, out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch

from specgen.bench.values import BASELINE, Difference, Run
from specgen.engine.model import TargetModel
from specgen.settings import SamplingSettings

NUM_STEPS = 4
"""Tokens fed one by one in the second reckoning, as the target alone does it."""
NOISE_MARGIN = 4.0
"""How much further than between two reckonings of ours the runs' own sums may lie apart: their caches differ, too."""
NUM_ULPS = 2.0
"""Rounding of the two logits themselves."""


class Comparison:
    """Collects where greedy answers part from the target's own, each difference looked into once.

    Args:
        target: Its cache is emptied whenever a difference is looked into.
        sampling: Only greedy answers are compared.
        alone: Index of the target alone; only settings of its engine may be observed.
    """

    def __init__(self, target: TargetModel, sampling: SamplingSettings, alone: int = BASELINE) -> None:
        self._target = target
        self.alone = alone
        self._is_wanted = sampling.is_greedy
        self._found: dict[tuple[int, int], Difference] = {}

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The worst one of each setting and prompt."""
        return tuple(self._found.values())

    def observe(self, runs: Sequence[Run], prompt_ids: Sequence[int]) -> None:
        """Compare the runs of one prompt with the target alone among them."""
        alone = next((run for run in runs if run.setting == self.alone), None)
        if alone is None or not self._is_wanted:
            return
        for run in runs:
            key = (run.setting, run.prompt)
            known = self._found.get(key)
            position = first_difference(alone.token_ids, run.token_ids)
            # A near tie must not hide what another repeat shows.
            if position is None or (known is not None and (not known.is_near_tie or known.position == position)):
                continue
            gap, tolerance = logit_gap(self._target, prompt_ids, alone.token_ids, run.token_ids, position)
            found = Difference(run.setting, run.prompt, position, gap, tolerance)
            if known is None or not found.is_near_tie:
                self._found[key] = found


def first_difference(alone: Sequence[int], drafted: Sequence[int]) -> int | None:
    """Index of the first token that differs, a missing one included."""
    return next((i for i, (a, b) in enumerate(zip_longest(alone, drafted)) if a != b), None)


def logit_gap(
    target: TargetModel, prompt_ids: Sequence[int], alone: Sequence[int], drafted: Sequence[int], position: int
) -> tuple[float, float]:
    """How close the two tokens are in the target's own eyes, and how close a matter of rounding would be.

    The logits at the place are reckoned twice, the text before it fed in one go and its end one by one. Where the two
    reckonings differ, so may passes over one token and over several.

    Args:
        target: Its cache is emptied before and after.
        prompt_ids: The prompt.
        alone: Answer of the target alone.
        drafted: Answer of the run with a draft.
        position: Where they part.

    Returns:
        Gap and tolerance, in logits. An answer that merely ended early is infinitely different.
    """
    if position >= len(alone) or position >= len(drafted):
        return float("inf"), 0.0
    text = [*prompt_ids, *alone[:position]]
    at_once = _logits(target, text, len(text) - 1)
    stepwise = _logits(target, text, max(len(text) - NUM_STEPS, 0))
    target.rewind(0)
    noise = float((at_once - stepwise).abs().max())
    rounding = torch.finfo(_compute_type(target)).eps * float(at_once.abs().max())
    gap = float((at_once[alone[position]] - at_once[drafted[position]]).abs())
    return gap, max(NOISE_MARGIN * noise, NUM_ULPS * rounding)


def _logits(target: TargetModel, text: Sequence[int], num_at_once: int) -> torch.Tensor:
    """Logits behind the text, `[vocab]`: its first part fed in one go, the rest token by token."""
    target.rewind(0)
    target.feed(text[:num_at_once])
    for end in range(num_at_once + 1, len(text)):
        target.feed(text[:end])
    return target.logits(text, 1)[0]


def _compute_type(target: TargetModel) -> torch.dtype:
    dtype = getattr(getattr(target, "model", None), "dtype", torch.float32)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32
