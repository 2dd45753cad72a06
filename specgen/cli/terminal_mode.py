"""The terminal for as long as a chat runs: keys wait for the prompt, Ctrl-Z stops, and that time counts nowhere."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from types import FrameType, TracebackType
from typing import Any, Self

Clock = Callable[[], float]

_INPUT, _LOCAL = 0, 3
"""Places of two flag words in what termios calls attributes."""


class TerminalMode:
    """Entered around a whole chat; the terminal is afterwards as it was before.

    What is typed while a model loads or writes is not shown and comes up at the next prompt. Ctrl-C and Ctrl-Z still
    are signals. The prompt changes the terminal further and sets it back to this.

    Args:
        hides_keys: False leaves the terminal alone, for a command that never reads keys; only the time stopped counts.
    """

    def __init__(self, *, hides_keys: bool = True) -> None:
        self._hides_keys = hides_keys
        self.stopped_seconds = 0.0
        self.was_stopped = False
        """The shell has written on the terminal since; set back by whoever has seen it."""
        self._before: list[Any] | None = None
        self._previous: Any = None

    def __enter__(self) -> Self:
        if self._hides_keys:
            with suppress(termios.error, OSError, ValueError):
                self._before = termios.tcgetattr(sys.stdin.fileno())
        self._hide_keys()
        self._previous = signal.getsignal(signal.SIGTSTP)
        if self._previous is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._on_stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTSTP, self._previous)
        self._show_keys()

    @contextmanager
    def released(self) -> Iterator[None]:
        """The terminal as it was before, for another program."""
        self._show_keys()
        try:
            yield
        finally:
            self._hide_keys()

    def running(self, clock: Clock) -> Clock:
        """The clock, standing still while the program is stopped."""
        return lambda: clock() - self.stopped_seconds

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        started = perf_counter()
        self._show_keys()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here the program stands still, until the shell lets it go on.
        signal.signal(signal.SIGTSTP, self._on_stop)
        self._hide_keys()
        self.was_stopped = True
        self.stopped_seconds += perf_counter() - started

    def _hide_keys(self) -> None:
        if self._before is None:
            return
        changed = list(self._before)
        # Without lines and without turning Enter into a newline, keys reach the prompt as if typed there.
        changed[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
        changed[_INPUT] &= ~termios.ICRNL
        self._set(changed)

    def _show_keys(self) -> None:
        if self._before is not None:
            self._set(self._before)

    def _set(self, attributes: list[Any]) -> None:
        # The terminal may be gone.
        with suppress(termios.error, OSError, ValueError):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)
