"""The terminal around a chat: what is stopped does not count, and all is set back."""

from __future__ import annotations

import os
import pty
import signal
import termios
from itertools import count

import pytest

from specgen.cli import terminal_mode as terminal_mode
from specgen.cli.terminal_mode import TerminalMode


def test_time_spent_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each look at the clock is a second; the program stands still from the first to the second.
    ticks = count()
    monkeypatch.setattr(terminal_mode, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with TerminalMode() as held:
        clock = held.without_suspension(lambda: 10.0)
        before = clock()
        signal.raise_signal(signal.SIGTSTP)

        assert (before, clock()) == (10.0, 9.0)
        assert held.was_suspended


def test_the_terminal_is_set_back_and_lent_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    main, sub = pty.openpty()
    with open(sub) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(sub)
        handler = signal.getsignal(signal.SIGTSTP)

        with TerminalMode() as held:
            hidden = termios.tcgetattr(sub)
            with held.released():
                lent = termios.tcgetattr(sub)
            again = termios.tcgetattr(sub)

        assert not hidden[3] & (termios.ECHO | termios.ICANON)
        assert hidden[3] & termios.ISIG
        assert (lent, again, termios.tcgetattr(sub)) == (before, hidden, before)
        assert signal.getsignal(signal.SIGTSTP) is handler
    os.close(main)
