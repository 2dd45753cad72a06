"""Tests the barrier at which tests of signals stop a child."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from tests.cli.barrier import wait_for_byte


@pytest.mark.timeout(10)
def test_a_signal_that_interrupts_no_system_call_is_handled_before_the_byte_arrives() -> None:
    reader, writer = os.pipe()

    def write(signum: int, frame: FrameType | None) -> None:
        os.write(writer, b".")

    # A signal to another thread sets Python's flag and does not interrupt what the main thread waits for.
    def send() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, write)
    sender = threading.Timer(0.1, send)
    sender.start()
    try:
        wait_for_byte(reader)  # the byte comes from the handler
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)
        os.close(reader)
        os.close(writer)
