"""Times work on a device: as a replayed recording, as a sequence of launches, and with a wait after each call."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """Returns how often a call waits for the device: reads of its values, and waits for events. None on a CPU.

    torch warns of the former only. Waiting for an event takes no time, and doesn't count, if a later read or wait was
    for work after it.
    """
    if device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            waits = EventWaits(lambda: _num_reads(caught))
            with waits.counted():
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return _num_reads(caught) + waits.count


def _num_reads(caught: Sequence[warnings.WarningMessage]) -> int:
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


class EventWaits:
    """Counts waits for events of one stream.

    Args:
        num_reads: Returns how many other reads there were.
    """

    def __init__(self, num_reads: Callable[[], int]) -> None:
        self.count = 0
        self._num_reads = num_reads
        self._num_recorded = self._num_over = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts until the block ends."""
        kind: Any = torch.cuda.Event
        record, synchronize = kind.record, kind.synchronize

        def recording(event: Any, *stream: Any) -> None:
            record(event, *stream)
            self._num_recorded += 1
            event.recorded_as, event.num_reads_before = self._num_recorded, self._num_reads()

        def waiting(event: Any) -> None:
            synchronize(event)
            self._note_wait(event)

        kind.record, kind.synchronize = recording, waiting
        try:
            yield
        finally:
            kind.record, kind.synchronize = record, synchronize

    def _note_wait(self, event: Any) -> None:
        number = getattr(event, "recorded_as", self._num_recorded)
        is_over = number <= self._num_over or self._num_reads() > getattr(event, "num_reads_before", 0)
        self.count += not is_over
        self._num_over = max(self._num_over, number)
