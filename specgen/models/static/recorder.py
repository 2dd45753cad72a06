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

from specgen.core.errors import is_out_of_memory

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


_STREAMS: dict[torch.device, Any] = {}
"""One stream per device for all recordings."""
_FAILED: list[Any] = []
"""Graphs whose recording could not be ended: torch's allocator holds callbacks into them, so they are never destroyed.

Before torch 2.13, the allocator then acts as if the recording went on: it gives no cached memory back (pytorch#180395).
torch has no public function to correct this.
"""


class CudaRecorder:
    """Records CUDA graphs. All graphs of a recorder share one private memory pool.

    So results must be copied to static tensors: another graph may overwrite what a graph allocated.

    Args:
        device: The device that the work runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device not in _STREAMS:
            _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream: Any = _STREAMS[device]
        self._pool = torch.cuda.graph_pool_handle()
        self._has_failed = False
        self._keeper: Any = None
        """A pool ends with its last graph, and its handle is invalid then. This graph lives as long as the recorder."""

    def record(self, work: Work) -> Work:
        if self._has_failed:
            raise RuntimeError("an earlier recording failed")
        try:
            return self._replay_of(work)
        except RuntimeError as error:
            if self._has_failed or not is_out_of_memory(error):
                raise
            # While it records, the allocator gives no cached memory back.
            torch.cuda.empty_cache()
            return self._replay_of(work)

    def _replay_of(self, work: Work) -> Work:
        if self._keeper is None:
            with torch.inference_mode(False):
                # The first graph on a device allocates the state of torch's generator, which each later one
                # overwrites, also outside of inference mode (pytorch#166792).
                self._keeper = self._graph_of(lambda: _allocate(self.device))
        replay: Work = self._graph_of(work).replay
        return replay

    def _graph_of(self, work: Work) -> Any:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        # torch.cuda.graph() would empty the allocator's cache at every recording.
        with _no_collection(), _own_workspace(), torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                work()
            except BaseException:
                with suppress(RuntimeError):
                    self._end(graph)
                raise
            self._end(graph)
        current.wait_stream(self._stream)
        return graph

    def _end(self, graph: Any) -> None:
        try:
            graph.capture_end()
        except RuntimeError as error:
            _FAILED.append(graph)
            # Memory can run out only after the recording has ended, while the graph is instantiated.
            self._has_failed = not is_out_of_memory(error)
            raise


def renewed(recorder: Recorder) -> Recorder:
    """Returns a recorder that records although this one may have failed."""
    return CudaRecorder(recorder.device) if isinstance(recorder, CudaRecorder) else recorder


def _allocate(device: torch.device) -> None:
    torch.zeros(1, device=device)


@contextmanager
def _own_workspace() -> Iterator[None]:
    """Makes a recording allocate the workspace of cuBLAS in its own pool, 32 MiB on Hopper and less on older cards.

    torch keeps one workspace per stream: the first recording allocates it in its pool, and all others of the stream use
    it. In torch 2.13 the end of any of these graphs frees it, while the others go on to use it (pytorch#193402). So the
    workspace is cleared before and after each recording, as `torch._inductor.cudagraph_trees` does. Only a private
    function can clear it; if a version of torch lacks it, nothing is cleared.
    """
    clear: Callable[[], None] = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


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
    recording takes longer than a pass.

    Args:
        recorder: Records the work.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._recorded: dict[Hashable, Work] = {}
        self._seen: set[Hashable] = set()
        self._plain: set[Hashable] = set()
        self.num_warmups = 0
        """Runs that were slower than later ones of their key: first runs and recordings."""
        self.failure: str | None = None
        """Why recording failed, until `take_failure` returns it."""
        self.has_failed = False
        """Whether recording failed: all work without a recording runs plainly since then."""

    @property
    def recorded_keys(self) -> frozenset[Hashable]:
        """Keys of the recordings in memory."""
        return frozenset(self._recorded)

    def run(self, key: Hashable, work: Work) -> None:
        """Does the work. Equal keys mean equal work on the same tensors."""
        replay = self._recorded.get(key)
        if replay is not None:
            replay()
            return
        if key in self._seen and key not in self._plain:
            replay = self._record(key, work)
            self.num_warmups += 1
        elif key not in self._seen:
            self.num_warmups += 1
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
        self._plain.clear()

    def _record(self, key: Hashable, work: Work) -> Work | None:
        """Records the work; None if that fails. Without memory for it, this key runs plainly; otherwise all do."""
        if not self.has_failed:
            try:
                replay = self._recorded[key] = self._recorder.record(work)
                return replay
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    self.failure = str(error).partition("\n")[0] or type(error).__name__
                    self.has_failed = True
        self._plain.add(key)
        return None
