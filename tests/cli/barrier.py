"""Stops a child at an exact place for a test: the child writes a byte to a pipe and waits for one. Nothing sleeps.

The child calls `reach(name)` at its places. The test's side is `tests.cli.children.Child`.
"""

from __future__ import annotations

import os
import select
from types import FrameType

VARIABLE = "SPECGEN_TEST_BARRIER"
"""`PLACE:ANNOUNCE_FD:WAIT_FD`; without the variable, nothing waits."""


def reach(place: str) -> None:
    """Announces the place and waits, if it is the one that the test chose."""
    chosen, _, descriptors = os.environ.get(VARIABLE, "").partition(":")
    if chosen == place:
        announce, _, wait = descriptors.partition(":")
        os.write(int(announce), b"p")
        wait_for_byte(int(wait))


def wait_for_byte(descriptor: int) -> None:
    """Waits in a child for a byte, and handles every signal meanwhile.

    Python looks for signals between two instructions. One that arrives after the last look and before `os.read` blocks
    does not end the read, so its handler would run after the byte only: in 1 of 100,000 waits, measured.
    """
    while not select.select([descriptor], [], [], 0.05)[0]:
        pass
    os.read(descriptor, 1)


def announce_signals() -> None:
    """Announces each signal after the program has handled it."""
    from specgen.cli.signals import StopSignals

    handle = StopSignals._on_signal

    def announcing(self: StopSignals, signum: int, frame: FrameType | None) -> None:
        try:
            handle(self, signum, frame)
        finally:
            _, announce, _ = os.environ[VARIABLE].split(":")
            os.write(int(announce), b"s")

    if VARIABLE in os.environ:
        StopSignals._on_signal = announcing  # type: ignore[method-assign]
