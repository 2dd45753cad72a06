"""Choosing the faster of two products, with a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor, nn

from specgen.engine.clock import HostStopwatch
from specgen.models.static.recorder import PlainRecorder
from specgen.models.timing import HostTimer, ReplayTimer, faster_of, timer_for


class SimulatedClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


class Timed(nn.Module):
    """Takes these times in turn, then the last one each time."""

    def __init__(self, clock: SimulatedClock, seconds: tuple[float, ...]) -> None:
        super().__init__()
        self.clock, self.remaining = clock, list(seconds)

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.now += self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]
        return inputs


@pytest.mark.parametrize(
    ("usual", "other", "is_other"),
    [
        ((1.0,), (0.5,), True),
        ((1.0,), (0.97,), False),
        ((1.0,), (2.0,), False),
        # A slow first pass or one disturbed pass does not decide.
        ((1.0,), (9.0, 0.5), True),
        ((1.0,), (0.5, 7.0, 0.5), True),
        ((0.1, 1.0), (0.5,), True),
    ],
)
def test_the_faster_product_is_chosen(usual: tuple[float, ...], other: tuple[float, ...], is_other: bool) -> None:
    clock = SimulatedClock()
    first, second = Timed(clock, usual), Timed(clock, other)

    chosen = faster_of(first, second, torch.zeros(1, 4), HostTimer(clock))

    assert chosen is (second if is_other else first)


class SlowLaunches:
    """A recorder that makes all work take long until it is recorded, as launches from Python do."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock, self.device_seconds = clock, dict[Callable[[], None], float]()

    def work(self, launch: float, on_device: float) -> Callable[[], None]:
        work = self.clock.passes(launch)
        self.device_seconds[work] = on_device
        return work

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return self.clock.passes(self.device_seconds[work])


def test_launches_and_flushes_do_not_count() -> None:
    clock = SimulatedClock()
    recorder = SlowLaunches(clock)
    works = [recorder.work(launch=9.0, on_device=1.0), recorder.work(launch=5.0, on_device=2.0)]

    found = ReplayTimer(lambda: recorder, HostStopwatch(clock), clock.passes(100.0)).seconds(works)

    assert found == [1.0, 2.0]


def test_a_disturbed_replay_does_not_decide() -> None:
    clock = SimulatedClock()
    times = iter([1.0, 50.0, 1.0, 1.0, 40.0, *[1.0] * 9])

    def work() -> None:
        clock.now += next(times)

    assert ReplayTimer(PlainRecorder, HostStopwatch(clock), lambda: None).seconds([work]) == [1.0]


def test_work_that_cannot_be_recorded_is_never_faster() -> None:
    class Refusing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("reads the host")

    clock = SimulatedClock()
    timer = ReplayTimer(Refusing, HostStopwatch(clock), lambda: None)
    first, second = Timed(clock, (2.0,)), Timed(clock, (1.0,))

    assert timer.seconds([clock.passes(1.0)]) == [inf]
    assert faster_of(first, second, torch.zeros(1, 4), timer) is first


def test_a_host_is_timed_by_its_clock() -> None:
    assert isinstance(timer_for(torch.device("cpu")), HostTimer)
