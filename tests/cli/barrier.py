"""Lets a test stop a child at an exact place: the child announces it on a pipe and waits for one byte. No sleeps.

The child's side: `arm` once, `reach(name)` at places. The test's side is `tests.cli.children.Child`.
"""

from __future__ import annotations

import os
from types import FrameType

VARIABLE = "SPECGEN_TEST_BARRIER"
"""`PLACE:ANNOUNCE_FD:WAIT_FD`; without it nothing waits."""


def reach(place: str) -> None:
    """Announce and wait, if this is the place."""
    wanted, _, descriptors = os.environ.get(VARIABLE, "").partition(":")
    if wanted == place:
        announce, _, wait = descriptors.partition(":")
        os.write(int(announce), b"p")
        os.read(int(wait), 1)


def announce_signals() -> None:
    """Announce each signal once the program has dealt with it."""
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
