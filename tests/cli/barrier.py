"""Stops a child at an exact place for a test: the child writes a byte to a pipe and waits for one. Nothing sleeps.

The child calls `reach(name)` at its places. The test's side is `tests.cli.children.Child`.
"""

from __future__ import annotations

import os
from types import FrameType

VARIABLE = "SPECGEN_TEST_BARRIER"
"""`PLACE:ANNOUNCE_FD:WAIT_FD`; without the variable, nothing waits."""


def reach(place: str) -> None:
    """Announces the place and waits, if it is the one that the test chose."""
    chosen, _, descriptors = os.environ.get(VARIABLE, "").partition(":")
    if chosen == place:
        announce, _, wait = descriptors.partition(":")
        os.write(int(announce), b"p")
        os.read(int(wait), 1)


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
