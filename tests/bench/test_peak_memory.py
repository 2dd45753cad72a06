"""The peak memory of a run on CUDA is what torch reserved, less the weights of models that the run does not use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specgen.bench.configurations import PeakMemory


def configuration(draft: Any, target: Any, num_draft_bytes: int = 0) -> Any:
    models = SimpleNamespace(
        draft=draft, target=target, target_info=SimpleNamespace(num_bytes=100), devices=[torch.device("cuda:0")]
    )
    return SimpleNamespace(models=models, setting=SimpleNamespace(num_draft_bytes=num_draft_bytes))


def test_peak_memory_on_cuda_is_what_torch_reserved_on_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pools of recorded passes are not allocated between replays."""
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", emptied.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: (300, 40)[index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 1)
    target, draft, other = object(), object(), object()
    configurations = [configuration(draft, target, 7), configuration(other, target, 30)]

    memory = PeakMemory(configurations, configurations[0])

    assert emptied == [0, 1]
    assert memory.read() == 340 - 30
