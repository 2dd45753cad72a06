"""Times the parts of a round: on the host, or by events in the stream of a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch

from specgen.engine.transfer import current_stream

Clock = Callable[[], float]
"""Returns seconds; waits first for work that was launched."""


class Stopwatch(Protocol):
    """Takes marks, and computes the seconds between them later."""

    def mark(self) -> Any:
        """Marks the present point of the work, without waiting for it."""

    def seconds(self, first: Any, last: Any) -> float:
        """Returns the seconds of the work between two marks."""

    def elapsed_seconds(self, first: Any) -> float:
        """Returns the seconds that passed on the host since a mark."""


class HostStopwatch:
    """A stopwatch on a clock: a mark is a time."""

    def __init__(self, clock: Clock = perf_counter) -> None:
        self.mark = clock

    def seconds(self, first: float, last: float) -> float:
        """Returns the difference of two marks."""
        return last - first

    def elapsed_seconds(self, first: float) -> float:
        """Returns the seconds since a mark."""
        return self.mark() - first


class EventClock:
    """A clock of one CUDA device, and a stopwatch whose marks are events in the stream.

    Reading a clock after each part of a round would stop the device four times a round. Events are read once, after
    the round's result was read, so they are complete by then.

    Args:
        device: The device that all models run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        """Returns seconds, after waiting for the device."""
        torch.cuda.synchronize(self._device)
        return perf_counter()

    def mark(self) -> tuple[Any, float]:
        """Returns an event that is recorded now, and the host's time."""
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(current_stream(self._device))
        return event, perf_counter()

    def seconds(self, first: tuple[Any, float], last: tuple[Any, float]) -> float:
        """Returns the device's seconds between two marks; waits for the last one."""
        last[0].synchronize()
        return float(first[0].elapsed_time(last[0])) / 1000

    def elapsed_seconds(self, first: tuple[Any, float]) -> float:
        """Returns the host's seconds since a mark."""
        return perf_counter() - first[1]


def device_clock(*devices: torch.device) -> Clock:
    """Returns the clock for work on these devices: an `EventClock` if all of it is on one CUDA device.

    A host clock reads the time when the kernels were launched, not when they end; so next to a CUDA device, a clock
    for several devices waits for each of them.
    """
    used = list(dict.fromkeys(devices))
    cuda = [device for device in used if device.type == "cuda"]
    if not cuda:
        return perf_counter
    if len(used) == 1:
        return EventClock(used[0])

    def read() -> float:
        for device in cuda:
            torch.cuda.synchronize(device)
        return perf_counter()

    return read


def stopwatch_of(clock: Clock) -> Stopwatch:
    """Returns a stopwatch that measures with a clock."""
    return clock if isinstance(clock, EventClock) else HostStopwatch(clock)
