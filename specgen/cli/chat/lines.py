"""A line of a chat, or the signal that came instead."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from specgen.cli.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import LineEditor


def read_line(editor: LineEditor, signals: StopSignals) -> str:
    """Wait for a line.

    Args:
        editor: Where it comes from.
        signals: Entered by the caller; Ctrl-C leaves no trace in it.

    Raises:
        KeyboardInterrupt: Ctrl-C, and no other signal.
        Stopped: Another signal.
        EOFError: There are no more lines.
    """
    came: list[int] = []

    def on_signal() -> None:
        # None again: a later one, which may be of another kind, finds us here, too, and not in the event loop.
        signum, signals.signum = signals.signum or 0, None
        came.append(signum)
        if not editor.interrupt():
            raise Stopped(signum)

    signals.listener = on_signal
    text: str | None = None
    try:
        text = editor.read()
    except Stopped as stopped:
        came.append(stopped.exit_code - 128)
    except KeyboardInterrupt:
        came.append(signal.SIGINT)
    finally:
        signals.listener = None
        signals.signum = next((signum for signum in came if signum != signal.SIGINT), None)
    if signals.signum is not None:
        raise Stopped(signals.signum)
    if came or text is None:
        raise KeyboardInterrupt
    return text
