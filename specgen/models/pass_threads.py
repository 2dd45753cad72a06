"""Chooses on how many threads passes of our own kernels run, so that busy cores do not stop them.

A pass of a small model lets all threads begin and end some 150 times. If another program has the core of one thread,
the others wait at each end for up to two time slices of the scheduler. Next to two other programs on two cores, passes
of SmolLM2-135M took 0.04 to 2.4 s on two threads, 0.05 s on one, and 0.014 s on two threads of an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import TypeVar

import torch

from specgen.engine.clock import Clock
from specgen.models.native_code import set_own_threads

Result = TypeVar("Result")

NUM_PASSES = 3
"""Passes in a row that must have lacked cores before fewer threads are tried, and passes that are compared. So a first
pass, one that reads its weights from the disk, or a single interruption changes nothing."""
LEAST_LACK = 0.4
"""Cores that a pass lacks at least if another program has one of them."""
TIME_SLICE = 0.003
"""Seconds for which the scheduler lets a program run. A pass that takes less has lost no core for so long: what it
lacks is the time until sleeping threads begin."""
LEAST_GAIN = 1.4
"""Fewer threads must be faster by this factor to be kept."""
CLEAR = 2
"""A number of threads is tried for a single pass if that takes so many times as long."""
FIRST_WAIT, MAX_WAIT = 0.5, 10.0
"""Seconds before another trial. They are doubled each time that one gained nothing."""
MAX_SHARE = 0.1
"""Share of the time that trials which gain nothing may take."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass.

    Args:
        seconds: How long it took.
        num_cores: Cores that its threads had, rounded down after adding `LEAST_LACK`.
    """

    seconds: float
    num_cores: int


class PassThreads:
    """Runs short passes of one model, and chooses their number of threads.

    Waiting threads keep their cores, unless another program gets them. So the processor time of a pass shows how many
    cores it had. If it lacked some, as many threads as it had cores are tried, and kept if they are faster. All threads
    are tried again after a while in which no pass lacked a core.

    Args:
        clock: Returns seconds.
        processor_clock: Returns the processor time of all threads of the process.
    """

    def __init__(self, clock: Clock = perf_counter, processor_clock: Clock = process_time) -> None:
        self._clock, self._processor_clock = clock, processor_clock
        self._start(1)

    def run(self, work: Callable[[], Result]) -> Result:
        """Does the work of a pass, on as many threads as torch is set to, or fewer."""
        if (most := torch.get_num_threads()) != self._most:
            self._start(most)
        if most == 1:
            return work()
        number = self._tried or self._number
        if number < most:
            set_own_threads(number)
        started, used = self._clock(), self._processor_clock()
        try:
            result = work()
        finally:
            if number < most:
                set_own_threads(most)
        now = self._clock()
        seconds = now - started
        num_cores = number if seconds < TIME_SLICE else int((self._processor_clock() - used) / seconds + LEAST_LACK)
        self._observe(now, Pass(seconds, num_cores))
        return result

    def _start(self, most: int) -> None:
        """Forgets what was seen on another number of threads."""
        self._most = self._number = most
        self._tried: int | None = None
        """Threads of the next pass, if they are not `_number`."""
        self._usual: list[Pass] = []
        """The last passes on `_number` threads."""
        self._trial: list[Pass] = []
        """Passes on `_tried` threads."""
        self._next_fewer = self._next_all = 0.0
        """When fewer threads, and all of them, may be tried."""
        self._wait = FIRST_WAIT

    def _observe(self, now: float, last: Pass) -> None:
        if self._tried is not None:
            self._trial.append(last)
            self._compare(now, self._tried)
            return
        if last.num_cores >= self._most:
            self._usual = []
            return
        self._usual = [*self._usual[1 - NUM_PASSES :], last]
        if last.num_cores < self._number:
            self._next_all = max(self._next_all, now + FIRST_WAIT)
        if len(self._usual) < NUM_PASSES:
            return
        most_cores = max(pass_.num_cores for pass_ in self._usual)
        if most_cores < self._number > 1 and now >= self._next_fewer:
            self._tried = max(most_cores, 1)
        elif self._number < self._most and now >= self._next_all:
            self._tried = self._most

    def _compare(self, now: float, tried: int) -> None:
        """Ends a trial once it has shown which number of threads is faster."""
        usual, seconds = (median(pass_.seconds for pass_ in passes) for passes in (self._usual, self._trial))
        if len(self._trial) < NUM_PASSES and seconds < CLEAR * usual:
            return
        fewer, took = max(self._trial[-1].num_cores, 1), sum(pass_.seconds for pass_ in self._trial)
        self._trial, self._tried = [], None
        if seconds * (LEAST_GAIN if tried < self._number else 1) < usual:
            self._number, self._usual = tried, []
            self._wait, self._next_fewer, self._next_all = FIRST_WAIT, now, now + FIRST_WAIT
        elif fewer < tried < self._number or self._number < fewer < tried:
            self._tried = fewer
        else:
            self._next_fewer = self._next_all = now + max(self._wait, took / MAX_SHARE)
            self._wait = min(2 * self._wait, MAX_WAIT)
