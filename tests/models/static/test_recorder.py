"""`CudaRecorder` against a stand-in for `torch.cuda` that has the traps of the real one."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from specgen.engine.clock import HostStopwatch
from specgen.models.static import recorder as recorder_module
from specgen.models.static.recorder import CudaRecorder, Replays
from specgen.models.timing import ReplayTimer


class FakeCuda:
    """Graphs by pool. A pool ends with its last graph; a capture that failed leaves the allocator in a bad state.

    The first graph allocates the state of the random generator, which the begin of each later one overwrites. The first
    product on the stream allocates a workspace, in the pool of the graph that is recorded then.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.live: dict[int, int] = {}
        self.begun: set[int] = set()
        self.num_emptied = 0
        self.is_broken = self.is_recording = self.is_full = False
        self.num_streams = 0
        self.num_failed_destroyed = 0
        self.failed: list[Any] = []
        self.state_is_inference = False
        self.pool: int | None = None
        self.workspace: int | None = None
        """The pool that it is in."""
        cuda = self

        class Graph:
            def capture_begin(self, pool: int, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                if pool in cuda.begun and not cuda.live.get(pool):
                    raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
                if cuda.is_broken:
                    raise RuntimeError("already recording")
                if not any(cuda.live.values()):
                    cuda.state_is_inference = torch.is_inference_mode_enabled()
                elif cuda.state_is_inference and not torch.is_inference_mode_enabled():
                    raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
                cuda.is_recording = True
                cuda.begun.add(pool)
                cuda.live[pool] = cuda.live.get(pool, 0) + 1
                self.pool = cuda.pool = pool

            def capture_end(self) -> None:
                self.failed, cuda.is_recording = cuda.is_broken, False
                if cuda.is_broken:
                    raise RuntimeError("capture was invalidated")
                if cuda.is_full:
                    raise torch.OutOfMemoryError("CUDA out of memory")

            def replay(self) -> None:
                """Replays nothing."""

            def __del__(self) -> None:
                if hasattr(self, "pool"):
                    cuda.live[self.pool] -= 1
                    cuda.num_failed_destroyed += getattr(self, "failed", False)

        class Stream:
            def wait_stream(self, other: Any) -> None:
                """Waits for nothing."""

        def made(device: torch.device) -> Stream:
            cuda.num_streams += 1
            return Stream()

        @contextmanager
        def entered(*_: Any) -> Iterator[None]:
            yield

        handles = iter(range(100))
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "Stream", made)
        patch.setattr(recorder_module, "_STREAMS", {})
        patch.setattr(recorder_module, "_FAILED", self.failed)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        patch.setattr(torch.cuda, "device", entered)
        patch.setattr(torch.cuda, "stream", entered)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
        patch.setattr(torch.cuda, "empty_cache", self.empty)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", self.clear, raising=False)

    def multiply(self) -> None:
        """Uses the workspace."""
        if self.workspace is None:
            self.workspace = self.pool

    def clear(self) -> None:
        self.workspace = None

    def empty(self) -> None:
        self.num_emptied += 1
        self.is_full = False


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


def test_a_torch_that_can_not_clear_workspaces_records(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    replays = Replays(CudaRecorder(torch.device("cpu")))

    for _ in range(2):
        replays.run("key", nothing)

    assert replays.recorded_keys == {"key"}


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


def test_without_memory_for_a_graph_it_is_recorded_again_after_the_cache_is_emptied(cuda: FakeCuda) -> None:
    recorder = CudaRecorder(torch.device("cpu"))
    cuda.is_full = True

    recorder.record(nothing)

    assert cuda.num_emptied == 1
    recorder.record(nothing)


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
        if cuda.is_recording:
            cuda.is_broken = True
            raise RuntimeError("operation not permitted when stream is capturing")

    for replays, work in ((first, reading), (second, nothing)):
        for _ in range(3):
            replays.run("key", work)

    assert (first.has_failed, second.has_failed) == (True, True)
    assert "not permitted" in str(first.take_failure())
    failure = second.take_failure()
    assert failure
    assert "already recording" not in failure, "the second one has begun to record"
    assert first.recorded_keys == second.recorded_keys == frozenset()


def test_a_device_that_records_nothing_fails_when_it_is_to_record(cuda: FakeCuda) -> None:
    """Not before: a model is loaded then, and runs plainly."""
    cuda.is_broken = True
    replays = Replays(CudaRecorder(torch.device("cpu")))
    done: list[int] = []
    for _ in range(3):
        replays.run("key", lambda: done.append(1))

    assert len(done) == 3
    assert "already recording" in str(replays.take_failure())


def test_recorders_of_a_device_share_a_stream(cuda: FakeCuda) -> None:
    recorders = [CudaRecorder(torch.device("cpu")) for _ in range(5)]

    assert cuda.num_streams == 1
    assert len({recorder._pool for recorder in recorders}) == 5


def test_a_product_uses_no_memory_of_another_recorder(cuda: FakeCuda) -> None:
    """That memory may be freed before the recording is, for example with another draft model."""
    recorders = [CudaRecorder(torch.device("cpu")) for _ in range(2)]
    used: list[int | None] = []
    cuda.workspace = 99  # of earlier products on the stream

    def work() -> None:
        cuda.multiply()
        used.append(cuda.workspace)

    for recorder in (*recorders, recorders[0]):
        recorder.record(work)

    assert used == [recorder._pool for recorder in (*recorders, recorders[0])]


@pytest.mark.parametrize("fails", [False, True])
def test_a_product_after_a_recording_uses_no_memory_of_it(cuda: FakeCuda, fails: bool) -> None:
    def work() -> None:
        cuda.multiply()
        if fails:
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted") if fails else nullcontext():
        CudaRecorder(torch.device("cpu")).record(work)

    assert cuda.workspace is None


@pytest.mark.parametrize("first", [True, False])
def test_recording_works_within_inference_mode_and_outside(cuda: FakeCuda, first: bool) -> None:
    made = []
    for is_inference in (first, not first, first):
        with torch.inference_mode(is_inference):
            made.append(CudaRecorder(torch.device("cpu")))
            made[-1].record(nothing)

    assert len(cuda.live) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_while_recording(cuda: FakeCuda, fails: bool) -> None:
    """A graph that the collector destroys meanwhile invalidates the recording."""
    was_on: list[bool] = []

    def work() -> None:
        was_on.append(gc.isenabled())
        if fails:
            raise ValueError("planted")

    recorder = CudaRecorder(torch.device("cpu"))
    with pytest.raises(ValueError, match="planted") if fails else nullcontext():
        recorder.record(work)

    assert was_on == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("error", [None, RuntimeError("operation not permitted"), torch.OutOfMemoryError("CUDA")])
def test_a_graph_whose_recording_cannot_be_ended_is_never_destroyed(cuda: FakeCuda, error: Exception | None) -> None:
    """torch calls into it at each later allocation. Its allocator may fail then if it is to free its cache."""
    recorder = CudaRecorder(torch.device("cpu"))

    def breaking() -> None:
        cuda.is_broken = True
        if error is not None:
            raise error

    with pytest.raises(RuntimeError, match="capture was invalidated" if error is None else str(error)):
        recorder.record(breaking)
    with pytest.raises(RuntimeError) as caught:
        recorder.record(breaking)
    assert "already recording" not in str(caught.value), "a second recording has begun"
    del recorder
    gc.collect()

    assert (cuda.num_failed_destroyed, cuda.num_emptied) == (0, 0)


def test_an_error_of_the_work_spoils_no_later_recording(cuda: FakeCuda) -> None:
    recorder = CudaRecorder(torch.device("cpu"))

    def failing() -> None:
        raise NotImplementedError("planted")

    with pytest.raises(NotImplementedError):
        recorder.record(failing)
    gc.collect()

    assert cuda.live == {0: 1}
    recorder.record(nothing)


def test_a_format_that_cannot_be_recorded_spoils_no_other_ones_time(cuda: FakeCuda) -> None:
    calls = iter(range(100))

    def reading() -> None:
        if next(calls):
            raise RuntimeError("operation not permitted when stream is capturing")

    timer = ReplayTimer(lambda: CudaRecorder(torch.device("cpu")), HostStopwatch(lambda: 0.0), nothing)

    assert timer.seconds([nothing, reading, nothing]) == [0.0, math.inf, 0.0]
