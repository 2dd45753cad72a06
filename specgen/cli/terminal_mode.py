"""Switches the terminal's input mode during a chat, handles Ctrl-Z, and takes suspended time out of measurements."""

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

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3
"""Indices of two flag words in the attributes of termios."""


class TerminalMode:
    """Hides typed keys while it is entered, and restores the terminal afterwards.

    Keys typed while a model loads or generates are not echoed; the next prompt receives them. Ctrl-C and Ctrl-Z stay
    signals. The prompt changes the terminal further and then restores this mode.

    Args:
        hides_keys: False leaves the terminal unchanged and only measures the suspended time.
    """

    def __init__(self, *, hides_keys: bool = True) -> None:
        self._hides_keys = hides_keys
        self.suspended_seconds = 0.0
        self.was_suspended = False
        """The shell has written to the terminal since; the reader of this flag resets it."""
        self._original: list[Any] | None = None
        self._previous_handler: Any = None

    def __enter__(self) -> Self:
        if self._hides_keys:
            with suppress(termios.error, OSError, ValueError):
                self._original = termios.tcgetattr(sys.stdin.fileno())
        self._hide_keys()
        self._previous_handler = signal.getsignal(signal.SIGTSTP)
        if self._previous_handler is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._on_suspend)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTSTP, self._previous_handler)
        self._show_keys()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Restores the original terminal mode for another program, while it is entered."""
        self._show_keys()
        try:
            yield
        finally:
            self._hide_keys()

    def without_suspension(self, clock: Clock) -> Clock:
        """Returns a clock that stands still while the program is suspended."""
        return lambda: clock() - self.suspended_seconds

    def _on_suspend(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        started = perf_counter()
        self._show_keys()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # The program is suspended here until the shell continues it.
        signal.signal(signal.SIGTSTP, self._on_suspend)
        self._hide_keys()
        self.was_suspended = True
        self.suspended_seconds += perf_counter() - started

    def _hide_keys(self) -> None:
        if self._original is None:
            return
        hidden = list(self._original)
        # Without line mode and without translation of Enter, the prompt receives keys as if they were typed there.
        hidden[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
        hidden[_INPUT_FLAGS] &= ~termios.ICRNL
        self._set(hidden)

    def _show_keys(self) -> None:
        if self._original is not None:
            self._set(self._original)

    def _set(self, attributes: list[Any]) -> None:
        # The terminal may have been closed.
        with suppress(termios.error, OSError, ValueError):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)
