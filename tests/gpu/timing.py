"""Times work on a device: as a replayed recording, as a sequence of launches, and with a wait after each call."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

from tests.gpu.models import recorder_for

Work = Callable[[], Any]


class Timer:
    """Times work on one device; all times are medians in milliseconds.

    Args:
        device: The device.
        repeats: Of each work.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats

    def wait(self) -> None:
        """Waits until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def replay_ms(self, work: Work) -> float:
        """Returns the time of a replay of recorded work, which must use fixed tensors only and read nothing."""

        def run() -> None:
            work()

        with torch.inference_mode():
            run()
            # A recorder of its own: after a failure, a recorder records nothing more.
            return self._marked(recorder_for(self.device).record(run))

    def stream_ms(self, work: Work) -> float:
        """Returns the time from call to call without waiting: the device's, if the host is faster."""
        for _ in range(3):  # plainly, recorded, replayed
            work()
        return self._marked(work)

    def call_ms(self, work: Work) -> float:
        """Returns the host's time of a call and a wait for the device."""
        times = []
        for index in range(self.repeats + 3):
            self.wait()
            started = perf_counter()
            work()
            self.wait()
            if index >= 3:
                times.append(1000 * (perf_counter() - started))
        return statistics.median(times)

    def _marked(self, work: Work) -> float:
        if self.device.type != "cuda":
            times = []
            for _ in range(self.repeats):
                started = perf_counter()
                work()
                times.append(1000 * (perf_counter() - started))
            return statistics.median(times)
        self.wait()
        marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(self.repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        self.wait()
        return float(statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)))


def num_kernels(device: torch.device, work: Work) -> int:
    """Returns how many kernels a call launches; on a CPU how many operations it runs."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events: Any = profiled.events() or ()
    return sum(event.device_type.name == device.type.upper() for event in events)


def num_host_reads(device: torch.device, work: Work) -> int | None:
    """Returns how often a call waits for the device; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)
