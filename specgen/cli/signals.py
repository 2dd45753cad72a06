"""Handles SIGINT, SIGTERM and SIGHUP: the first signal requests a stop, the second one stops the program."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal stopped the program. A BaseException, so that no `except Exception` catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop, while it is entered.

    While a `listener` is set, the first signal calls it, and the work continues to the next point where it can stop.
    Without a listener, and at the second signal, `Stopped` is raised at once. An ignored signal stays ignored: a shell
    starts background jobs that way.
    """

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None
        self.signum: int | None = None
        """The signal received, if any."""
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for signum in WATCHED:
            previous = signal.getsignal(signum)
            if previous is not signal.SIG_IGN:
                self._previous[signum] = previous
                signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        self._previous.clear()

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number; 0 if none was received."""
        return 0 if self.signum is None else 128 + self.signum

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        is_first = self.signum is None
        self.signum = self.signum or signum
        if is_first and self.listener is not None:
            self.listener()
        else:
            raise Stopped(signum)
