"""Ctrl-C and its relatives: the first one asks the work to stop, the second one stops it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal ended the program where it was. A BaseException: nothing on the way may take it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop, while it is entered.

    While a `listener` is set, the first signal calls it and work goes on to a good place to stop. Without one, and at
    the second signal, `Stopped` is raised where the program is. An ignored signal stays ignored: a shell starts
    background jobs that way.
    """

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None
        self.signum: int | None = None
        """The signal that came, if one did."""
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
        """128 + signal, or 0 if none came."""
        return 0 if self.signum is None else 128 + self.signum

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        is_first = self.signum is None
        self.signum = self.signum or signum
        if is_first and self.listener is not None:
            self.listener()
        else:
            raise Stopped(signum)
