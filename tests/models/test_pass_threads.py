"""Passes run on fewer threads where other programs have cores, and on all threads everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, repeat
from threading import Thread

import pytest
import torch

from specgen.models.pass_threads import PassThreads
from tests.fakes import threads

STEPS, SLICE = 150, 0.003
"""Parts of a pass that end together, and seconds that another program keeps a core."""
WORK = 0.016
"""Seconds of a pass on one thread with a core to itself."""


class Machine:
    """A machine with planted times: an idle one, until a test says otherwise.

    A thread on a core that it shares waits for a time slice in each part of a pass, and the others use their cores.
    Threads go to idle cores first.
    """

    def __init__(self, num_cores: int) -> None:
        self.num_cores, self.num_busy = num_cores, 0
        self.now = self.used = 0.0
        self.work = WORK
        self.extra: Iterator[float] = iter(())
        """Seconds without processor time that the next passes take in addition, as reads from the disk do."""
        self.log: list[int] = []
        """Threads of each pass."""

    def run(self) -> int:
        """Runs a pass; returns its number of threads."""
        number = torch.get_num_threads()
        num_shared = max(0, number - (self.num_cores - self.num_busy))
        seconds = self.work / number
        if num_shared:
            seconds = 2 * seconds if number == 1 else seconds + STEPS * SLICE
        self.now += seconds + next(self.extra, 0.0)
        self.used += seconds * (number - num_shared / 2)
        self.log.append(number)
        return number

    def passes(self, chosen: PassThreads, number: int) -> list[int]:
        """Runs passes one after the other; returns the threads of each."""
        return [chosen.run(self.run) for _ in range(number)]

    def passes_until(self, chosen: PassThreads, seconds: float) -> list[int]:
        """Runs passes until so many seconds are over."""
        end, first = self.now + seconds, len(self.log)
        while self.now < end:
            chosen.run(self.run)
        return self.log[first:]


def planted(num_cores: int) -> tuple[Machine, PassThreads]:
    machine = Machine(num_cores)
    return machine, PassThreads(lambda: machine.now, lambda: machine.used)


def numbers_next_to(num_busy: int, seconds: float) -> list[int]:
    """Returns the threads of each pass in 100 seconds on two cores, after some seconds next to busy programs."""
    with threads(2):
        machine, chosen = planted(2)
        machine.num_busy = num_busy
        machine.passes_until(chosen, seconds)
        return machine.passes_until(chosen, 100)


@pytest.fixture(params=[2, 8])
def num_cores(request: pytest.FixtureRequest) -> Iterator[int]:
    with threads(request.param):
        yield request.param


def test_an_idle_machine_runs_every_pass_on_all_threads(num_cores: int) -> None:
    machine, chosen = planted(num_cores)

    for index in range(1000):
        machine.work = WORK * (1 + index / 100)  # attention over a growing cache
        machine.passes(chosen, 1)

    assert set(machine.log) == {num_cores}


def test_slow_passes_are_no_reason_for_fewer_threads(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.extra = iter([5.0, 1.0, 0, 0, 0.5, 0.5, 0, 0.2])  # first passes, and page faults

    machine.passes(chosen, 20)
    machine.work = 100 * WORK
    machine.passes(chosen, 20)

    assert set(machine.log) == {num_cores}


def test_short_passes_whose_threads_begin_late_are_no_reason_for_fewer_threads(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.work = 0.0005
    machine.extra = repeat(0.0005)

    machine.passes(chosen, 100)

    assert set(machine.log) == {num_cores}


def test_short_passes_that_other_programs_make_long_get_fewer_threads(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.work = 0.0005
    machine.num_busy = num_cores

    machine.passes_until(chosen, 100)

    assert machine.log.count(1) > len(machine.log) * 0.99


def test_two_disturbed_passes_in_a_row_change_nothing(num_cores: int) -> None:
    machine, chosen = planted(num_cores)

    for _ in range(5):
        machine.num_busy = num_cores
        machine.passes(chosen, 2)
        machine.num_busy = 0
        machine.passes(chosen, 1)

    assert set(machine.log) == {num_cores}


def test_threads_that_wait_for_the_disk_are_tried_once_and_kept(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.extra = iter([1.0] * 12)

    machine.passes(chosen, 12)

    assert machine.log[:3] == [num_cores] * 3
    assert machine.log[6:] == [num_cores] * 6


def test_three_passes_without_their_cores_lead_to_fewer_threads(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.passes(chosen, 10)
    machine.num_busy = num_cores

    machine.passes(chosen, 60)

    assert machine.log[10:13] == [num_cores] * 3
    assert machine.log[13] < num_cores
    assert machine.log[-20:] == [1] * 20


def test_a_process_that_starts_on_a_busy_machine_finds_it_out(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.num_busy = num_cores

    machine.passes(chosen, 60)

    assert machine.log[-20:] == [1] * 20


def test_one_busy_core_of_eight_leaves_seven_threads() -> None:
    with threads(8):
        machine, chosen = planted(8)
        machine.num_busy = 1

        machine.passes(chosen, 12)

    assert machine.log == [8] * 3 + [7] * 9


def test_seven_threads_run_when_most_programs_end() -> None:
    with threads(8):
        machine, chosen = planted(8)
        machine.num_busy = 8
        machine.passes(chosen, 60)
        machine.num_busy = 1

        later = machine.passes_until(chosen, 20)

    assert set(later[-20:]) == {7}


def test_all_threads_run_soon_after_other_programs_end(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.num_busy = num_cores
    machine.passes_until(chosen, 30)
    machine.num_busy = 0

    later = machine.passes_until(chosen, 12)

    assert later[0] == 1
    assert set(later[-20:]) == {num_cores}


def test_where_no_thread_lacks_its_core_all_threads_are_tried_rarely() -> None:
    later = numbers_next_to(1, 5)

    assert 5 <= later.count(2) <= 110 * 0.1 / (STEPS * SLICE)
    assert (2, 2) not in pairwise(later)  # one pass shows how slow it is


def test_trials_that_gain_nothing_become_rare(num_cores: int) -> None:
    machine, chosen = planted(num_cores)
    machine.extra = repeat(0.008)

    numbers = machine.passes_until(chosen, 100)

    num_fewer = sum(number < num_cores for number in numbers)
    assert 10 <= num_fewer <= 100
    assert num_fewer < len(numbers) / 50


def test_no_trial_is_made_while_a_thread_lacks_its_core() -> None:
    assert set(numbers_next_to(2, 2)) == {1}


def test_another_setting_of_torch_starts_again() -> None:
    machine, chosen = planted(4)
    machine.num_busy = 4
    with threads(4):
        machine.passes(chosen, 30)

    with threads(3):
        assert chosen.run(machine.run) == 3
    with threads(1):
        assert chosen.run(machine.run) == 1


def test_the_setting_of_torch_stays_when_a_pass_fails() -> None:
    def fail() -> None:
        raise RuntimeError

    with threads(2):
        machine, chosen = planted(2)
        machine.num_busy = 2
        machine.passes(chosen, 10)
        assert machine.log[-1] == 1
        with pytest.raises(RuntimeError):
            chosen.run(fail)
        assert torch.get_num_threads() == 2


def test_python_threads_that_begin_during_a_pass_have_all_threads() -> None:
    """They use torch for the first time then, and keep the number that they find."""
    found: list[tuple[int, int]] = []

    def start_another() -> None:
        other = Thread(target=lambda: found.append((own, torch.get_num_threads())))
        own = torch.get_num_threads()
        other.start()
        other.join()

    with threads(2):
        machine, chosen = planted(2)
        machine.num_busy = 2
        machine.passes(chosen, 10)
        chosen.run(start_another)

    assert found == [(1, 2)]
