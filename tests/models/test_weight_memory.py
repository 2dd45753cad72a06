"""Memory for weights: small ones that stay share mappings, without overlapping, for as long as one of them is used."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgen.models import weight_memory
from specgen.models.weight_memory import ALIGNMENT, HUGE_BYTES, SHARED_BYTES, SharedMemory

SIZES = st.lists(st.integers(0, 3_000_000), min_size=1, max_size=30)


@given(SIZES)
def test_no_tensor_overlaps_another_and_all_are_aligned(sizes: list[int]) -> None:
    shared = SharedMemory()

    made = [shared.mapped_tensor((size,), torch.uint8) for size in sizes]
    for index, (tensor, memory) in enumerate(made):
        memory[:] = bytes([index % 251]) * len(memory)
        assert len(memory) == tensor.nbytes

    assert all(bool((tensor == index % 251).all()) for index, (tensor, _) in enumerate(made))
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor, _ in made)


def test_memory_stays_as_long_as_one_of_its_tensors() -> None:
    shared = SharedMemory()
    first, _ = shared.mapped_tensor((1000,), torch.float32)
    last = [shared.mapped_tensor((SHARED_BYTES // 16,), torch.float32)[0] for _ in range(9)][-1]
    first += 1
    del shared

    assert float(first.sum()) == 1000
    assert float(last.sum()) == 0


def test_small_weights_ask_for_huge_pages_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Memory(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            asked.append(len(self))

    monkeypatch.setattr(weight_memory, "mmap", Memory)
    shared = SharedMemory()
    for _ in range(2 * SHARED_BYTES // HUGE_BYTES):
        shared.mapped_tensor((HUGE_BYTES - ALIGNMENT,), torch.uint8)

    assert asked == [SHARED_BYTES] * 2
