"""Times work: by a clock on the host, or by marks in the stream around replays.

A launch on CUDA returns before the work is done, and may take the host longer than the product takes the device. Models
replay their passes, so the products are compared as replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from statistics import median
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn

from specgen.engine.clock import EventClock, Stopwatch
from specgen.models.static.recorder import CudaRecorder, Recorder, Work

NUM_TIMED = 3
NUM_REPLAYS = 9
FLUSH_BYTES = 96 * 1024 * 1024
"""Written before each timed replay: a single weight would stay in the device's cache, a whole model's don't."""
WORTHWHILE = 0.95
"""A faster module must take less than this share of the usual one's time to be worth its rounding."""


class Timer(Protocol):
    """Compares the times of several works on one device."""

    def seconds(self, works: Sequence[Work]) -> list[float]:
        """Returns the seconds of each work, measured in turn; infinity if it can't run as a model's passes do."""


class HostTimer:
    """Takes the minimum of several runs; the first one is not timed.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock

    def seconds(self, works: Sequence[Work]) -> list[float]:
        """As in `Timer`."""
        least = [inf] * len(works)
        for sample in range(NUM_TIMED + 1):
            for index, work in enumerate(works):
                started = self._clock()
                work()
                if sample:
                    least[index] = min(least[index], self._clock() - started)
        return least


class ReplayTimer:
    """Takes the median of several replays of recorded work.

    Args:
        make_recorder: Makes a recorder for each work, which must use fixed tensors only: after a failure, a recorder
            records nothing more.
        stopwatch: Marks the stream.
        flush: Runs before each timed replay, outside of the marks. It also keeps the device busy until the replay is
            launched.
    """

    def __init__(self, make_recorder: Callable[[], Recorder], stopwatch: Stopwatch, flush: Work) -> None:
        self._make_recorder, self._stopwatch, self._flush = make_recorder, stopwatch, flush

    def seconds(self, works: Sequence[Work]) -> list[float]:
        """As in `Timer`."""
        replays = [self._recorded(work) for work in works]
        marks: list[list[tuple[object, object]]] = [[] for _ in works]
        for sample in range(NUM_REPLAYS + 1):  # the first one warms up
            for index, replay in enumerate(replays):
                if replay is not None:
                    self._flush()
                    first = self._stopwatch.mark()
                    replay()
                    last = self._stopwatch.mark()
                    marks[index] += [(first, last)] if sample else []
        return [median(self._stopwatch.seconds(*pair) for pair in pairs) if pairs else inf for pairs in marks]

    def _recorded(self, work: Work) -> Work | None:
        try:
            work()  # initializes the libraries
            return self._make_recorder().record(work)
        except (RuntimeError, NotImplementedError):
            return None


def timer_for(device: torch.device) -> Timer:
    """Returns the timer for work on a device."""
    if device.type != "cuda":
        return HostTimer()
    return ReplayTimer(lambda: CudaRecorder(device), EventClock(device), flush_on(device))


def flush_on(device: torch.device) -> Callable[[], None]:
    """Returns what writes more than a device's cache holds, so that the next product reads its weights from memory."""
    flushed = torch.zeros(FLUSH_BYTES // 4, device=device)

    def flush() -> None:
        flushed.add_(1.0)

    return flush


def faster_of(usual: nn.Module, other: nn.Module, row: Tensor, timer: Timer | None = None) -> nn.Module:
    """Returns the faster of two modules; `usual` unless the other one is clearly faster.

    Args:
        usual: Returned unless the other one is clearly faster.
        other: The other one.
        row: `[1, inputs]`.
        timer: None: the one for the row's device.
    """

    def run_usual() -> None:
        usual(row)

    def run_other() -> None:
        other(row)

    usual_seconds, other_seconds = (timer or timer_for(row.device)).seconds([run_usual, run_other])
    return other if other_seconds < WORTHWHILE * usual_seconds else usual
