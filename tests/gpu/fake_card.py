"""Adds to `tests.fake_cuda` what a run on a card uses: graphs, streams, times, and properties of the card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specgen.loading import decoder_weights
from specgen.models.static import recorder
from tests.fake_cuda import FakeCuda, fake_cuda
from tests.models.static.recorder import Trace


class Graph:
    """A CUDA graph: the operations between `capture_begin` and `capture_end`, which have no effect."""

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self._trace = Trace()
        self._trace.__enter__()

    def capture_end(self) -> None:
        self._trace.__exit__(None, None, None)
        self._trace.undo()

    def replay(self) -> None:
        self._trace.replay()


class Stream:
    """A stream; all work is done at once."""

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        """Waits for nothing."""


class InThread:
    """A pool of threads that has only the caller's: the fake device is one thread's."""

    def __init__(self, num_workers: int) -> None:
        pass

    def __enter__(self) -> InThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        return map(work, values)


@contextmanager
def fake_card(patch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Makes `cuda` a card, in this thread, until the block ends."""
    import bitsandbytes  # noqa: F401  while there is no CUDA, because it would load its library

    with fake_cuda(patch) as device:
        event: Any = torch.cuda.Event

        class TimedEvent(event):
            """An event with the host's time."""

            def record(self, stream: Any = None) -> None:
                super().record(stream)
                self.recorded_at = perf_counter()

            def elapsed_time(self, last: Any) -> float:
                return 1000 * float(last.recorded_at - self.recorded_at)

        fakes: dict[str, Any] = {
            "CUDAGraph": Graph,
            "Event": TimedEvent,
            "Stream": Stream,
            "current_stream": Stream,
            "device": nullcontext,
            "device_count": lambda: 1,
            "empty_cache": lambda: None,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "fake",
            "get_device_properties": lambda device=None: SimpleNamespace(
                name="fake", multi_processor_count=1, total_memory=24e9, major=9, minor=0
            ),
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "graph_pool_handle": lambda: (0, 1),
            "is_available": lambda: True,
            "mem_get_info": lambda device=None: (20 * 2**30, 24 * 2**30),
            "memory_allocated": lambda device=None: 0,
            "memory_reserved": lambda device=None: 0,
            "set_rng_state": lambda state, device=None: None,
            "set_sync_debug_mode": lambda mode: setattr(device, "warns_of_reads", mode == "warn"),
            "stream": nullcontext,
            "synchronize": lambda device=None: None,
        }
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch.backends.cuda, "is_built", lambda: True)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        patch.setattr(recorder, "_STREAMS", {})
        patch.setattr(decoder_weights, "ThreadPoolExecutor", InThread)
        yield device
