"""Rehearses the run on a card with a fake one: what it does on CUDA only must not fail on the first card."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.fake_cuda import FAKE
from tests.gpu import models, on_card, passes, products
from tests.gpu.fake_card import fake_card
from tests.gpu.report import Context

WITHOUT_KERNEL = {"int4", "nf4_kernel", "varlen"}
"""What only a torch with CUDA computes: the rehearsal gets as far as the call."""
SLOW = {1}


class ShortContext(Context):
    """A rehearsal of a few steps: each takes ten times as long as on a CPU."""

    def pick(self, real: Any, tiny: Any) -> Any:
        return {40: 8, 24: 12}.get(tiny, tiny) if isinstance(tiny, int) else tiny


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(part.number, marks=pytest.mark.slow if part.number in SLOW else pytest.mark.thorough)
        for part in on_card.PARTS
    ],
)
def test_every_part_runs_on_a_fake_card(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[dict[str, Any]] = []
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for module in (passes, products):
        monkeypatch.setattr(module, "ROWS", (1, 2))
    monkeypatch.setattr(passes, "num_kernels", lambda device, work: work().shape[0])
    monkeypatch.setattr(torch, "compile", lambda work, **options: work)
    with fake_card(monkeypatch):
        device = models.prepare("cuda")
        context = ShortContext(device, True, lambda name, **fields: figures.append({"name": name, **fields}))
        on_card.PARTS[number].run(context)

    assert device == FAKE
    assert figures
    failed = [figure for figure in figures if "error" in figure]
    kinds = {figure.get("kind") or figure.get("kernel") for figure in failed}
    assert kinds <= WITHOUT_KERNEL, failed
    assert {figure["per_round"] for figure in figures if figure["name"] == "host_reads"} <= {1.0}
