"""The loading tests have a cache of their own, and libraries prepared as the program does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specgen.loading import packed_formats, placement
from specgen.loading.libraries import prepare_libraries
from tests.loading.builders import cpu_with

prepare_libraries(verbose=False)


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> Path:
    return cache


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to be a machine with a CPU only, which has neither bfloat16 nor packed products."""
    monkeypatch.setattr(placement, "has_float16_matmul", lambda: False)
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: False)
    monkeypatch.setattr(packed_formats, "may_run_kernels", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    cpu_with(monkeypatch, "avx2")
