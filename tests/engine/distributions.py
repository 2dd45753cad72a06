"""Caches the distributions of a table's few rows, which saves a third of the time of tests that run the loop often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine import target_distributions
from specgen.engine.drafters import model as drafters
from specgen.engine.sampling import TokenDistributions, token_distributions

Make = Callable[[Tensor, SamplingSettings, Tensor | None, Tensor | None], TokenDistributions]


@contextmanager
def distributions_made_once() -> Iterator[None]:
    """Caches what the loop and the drafter call.

    A distribution depends on the arguments only, so the cache changes no draw. A function that a planted bug put in
    its place is not cached: it may do more than return a distribution.
    """
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for module in (target_distributions, drafters):
            if module.token_distributions is token_distributions:
                patch.setattr(module, "token_distributions", _remembering(token_distributions))
        yield


def _remembering(make: Make) -> Make:
    known: dict[object, TokenDistributions] = {}

    def remembered(
        logits: Tensor, settings: SamplingSettings, seen: Tensor | None, noise: Tensor | None
    ) -> TokenDistributions:
        assert noise is None
        key = (logits.shape, logits.numpy().tobytes(), settings, None if seen is None else seen.numpy().tobytes())
        if key not in known:
            known[key] = make(logits, settings, seen, noise)
        return known[key]

    return remembered
