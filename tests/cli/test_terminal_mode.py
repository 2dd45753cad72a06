"""The terminal mode of a chat: it is restored, and suspended time is not measured."""

from __future__ import annotations

import os
import pty
import signal
import termios
from itertools import count

import pytest

from specgen.cli import terminal_mode
from specgen.cli.terminal_mode import TerminalMode


def test_a_clock_stands_still_while_the_program_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each reading of the clock is a second later; the program is suspended from the first reading to the second.
    ticks = count()
    monkeypatch.setattr(terminal_mode, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with TerminalMode() as mode:
        clock = mode.without_suspension(lambda: 10.0)
        before = clock()
        signal.raise_signal(signal.SIGTSTP)

        assert (before, clock()) == (10.0, 9.0)
        assert mode.was_suspended


def test_the_terminal_is_restored_and_released_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    main, sub = pty.openpty()
    with open(sub) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(sub)
        handler = signal.getsignal(signal.SIGTSTP)

        with TerminalMode() as mode:
            hidden = termios.tcgetattr(sub)
            with mode.released():
                released = termios.tcgetattr(sub)
            again = termios.tcgetattr(sub)

        assert not hidden[3] & (termios.ECHO | termios.ICANON)
        assert hidden[3] & termios.ISIG
        assert (released, again, termios.tcgetattr(sub)) == (before, hidden, before)
        assert signal.getsignal(signal.SIGTSTP) is handler
    os.close(main)
