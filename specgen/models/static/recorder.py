"""Records a function on static tensors once and replays it. On CUDA a replay is one launch instead of hundreds.

A recorded function may use tensors at fixed addresses only: numbers of the host are recorded as they were. The names of
CUDA graphs occur in this module only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch

Work = Callable[[], None]
"""Reads and writes static tensors."""


class Recorder(Protocol):
    """Turns work into something that repeats it."""

    def record(self, work: Work) -> Work:
        """Records `work`, without doing it. It must have run before, so that all libraries are initialized.

        Raises:
            RuntimeError: The work can't be recorded.
        """


class PlainRecorder:
    """Records nothing: a replay calls the function."""

    def record(self, work: Work) -> Work:
        return work


class CudaRecorder:
    """Records CUDA graphs. All graphs of a recorder share one private memory pool.

    So results must be copied to static tensors: another graph may overwrite what a graph allocated.

    Args:
        device: The device that the work runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        # torch.cuda.graph() would empty the allocator's cache at every recording.
        with _no_collection(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the garbage collector: a graph that it destroys during a recording invalidates the recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Replays:
    """Does work by key: plainly the first time, recorded from the second time on.

    The first run gives the right result and initializes the libraries. Most keys of a short answer occur once, and a
    recording takes as long as tens of passes.

    Args:
        recorder: Records the work.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._recorded: dict[Hashable, Work] = {}
        self._seen: set[Hashable] = set()
        self.num_warmups = 0
        """Runs that were slower than later ones of their key: first runs and recordings."""
        self.failure: str | None = None
        """Why recording failed, if it did; all work runs plainly since then."""

    @property
    def recorded_keys(self) -> frozenset[Hashable]:
        """Keys of the recordings in memory."""
        return frozenset(self._recorded)

    def run(self, key: Hashable, work: Work) -> None:
        """Does the work. Equal keys mean equal work on the same tensors."""
        replay = self._recorded.get(key)
        self.num_warmups += replay is None
        if replay is None and key in self._seen:
            replay = self._recorded[key] = self._record(work)
        self._seen.add(key)
        (replay or work)()

    def take_failure(self) -> str | None:
        """Returns once why recording failed, if it did."""
        failure, self.failure = self.failure, None
        return failure

    def clear(self) -> None:
        """Forgets all recordings, because the tensors they use were replaced."""
        self._recorded.clear()
        self._seen.clear()

    def _record(self, work: Work) -> Work:
        try:
            return self._recorder.record(work)
        except RuntimeError as error:
            self.failure = str(error).partition("\n")[0] or type(error).__name__
            self._recorder = PlainRecorder()
            return work
