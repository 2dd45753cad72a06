"""`CudaRecorder` against a stand-in for `torch.cuda` that has the traps of the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from specgen.models.static.recorder import CudaRecorder, Replays


class FakeCuda:
    """Graphs by pool. A pool ends with its last graph; a capture that failed leaves the allocator in a bad state."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.live: dict[int, int] = {}
        self.begun: set[int] = set()
        self.num_emptied = 0
        self.is_broken = False
        cuda = self

        class Graph:
            def capture_begin(self, pool: int, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                if pool in cuda.begun and not cuda.live.get(pool):
                    raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
                if cuda.is_broken:
                    raise RuntimeError("already recording")
                cuda.begun.add(pool)
                cuda.live[pool] = cuda.live.get(pool, 0) + 1
                self.pool = pool

            def capture_end(self) -> None:
                if cuda.is_broken:
                    raise RuntimeError("capture was invalidated")

            def replay(self) -> None:
                """Replays nothing."""

            def __del__(self) -> None:
                if hasattr(self, "pool"):
                    cuda.live[self.pool] -= 1

        class Stream:
            def wait_stream(self, other: Any) -> None:
                """Waits for nothing."""

        @contextmanager
        def entered(*_: Any) -> Iterator[None]:
            yield

        handles = iter(range(100))
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "Stream", lambda device: Stream())
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        patch.setattr(torch.cuda, "device", entered)
        patch.setattr(torch.cuda, "stream", entered)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
        patch.setattr(torch.cuda, "empty_cache", self.empty)

    def empty(self) -> None:
        self.num_emptied += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def nothing() -> None:
    """Does nothing."""


def test_recording_works_after_all_recordings_were_forgotten(cuda: FakeCuda) -> None:
    replays = Replays(CudaRecorder(torch.device("cpu")))
    for _ in range(3):
        for _ in range(3):
            replays.run("key", nothing)
        assert replays.recorded_keys == {"key"}
        replays.clear()

    assert not replays.has_failed
    assert cuda.live == {0: 1}


def out_of_memory(num_times: int) -> Callable[[], None]:
    """Work that runs, and then fails to be recorded so many times."""
    calls = iter(range(100))

    def work() -> None:
        if 1 <= next(calls) <= num_times:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return work


def test_a_recording_without_memory_is_tried_again_after_the_cache_is_emptied(cuda: FakeCuda) -> None:
    replays = Replays(CudaRecorder(torch.device("cpu")))
    work = out_of_memory(1)
    for _ in range(2):
        replays.run("key", work)

    assert replays.recorded_keys == {"key"}
    assert cuda.num_emptied == 1


def test_without_memory_for_one_recording_the_others_go_on(cuda: FakeCuda) -> None:
    replays = Replays(CudaRecorder(torch.device("cpu")))
    work = out_of_memory(2)
    for _ in range(4):
        replays.run("large", work)
    for _ in range(2):
        replays.run("small", nothing)

    assert replays.recorded_keys == {"small"}
    assert replays.take_failure() is None
    assert cuda.num_emptied == 1


def test_after_a_failed_recording_no_other_is_tried_by_anyone(cuda: FakeCuda) -> None:
    recorder = CudaRecorder(torch.device("cpu"))
    first, second = Replays(recorder), Replays(recorder)

    def reading() -> None:
        cuda.is_broken = bool(first.recorded_keys or second.recorded_keys) or cuda.live[0] > 1
        if cuda.is_broken:
            raise RuntimeError("operation not permitted when stream is capturing")

    for replays in (first, second):
        for _ in range(3):
            replays.run("key", reading if cuda.live[0] > 1 or replays is first else nothing)

    assert (first.has_failed, second.has_failed) == (True, True)
    assert "not permitted" in str(first.take_failure())
    assert "an earlier recording failed" in str(second.take_failure())
    assert first.recorded_keys == second.recorded_keys == frozenset()
