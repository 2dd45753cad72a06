"""Reads a line of a chat, or reports the signal that arrived instead."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from specgen.cli.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import LineEditor


def read_line(editor: LineEditor, signals: StopSignals) -> str:
    """Waits for a line.

    Args:
        editor: Reads the line.
        signals: Entered by the caller. Ctrl-C is not left pending in it.

    Raises:
        KeyboardInterrupt: Ctrl-C, and no other signal.
        Stopped: Another signal.
        EOFError: End of input.
    """
    received: list[int] = []

    def on_signal() -> None:
        # Reset, so that a later signal, maybe of another kind, calls this again instead of raising in the event loop.
        signum, signals.signum = signals.signum or 0, None
        received.append(signum)
        if not editor.interrupt():
            raise Stopped(signum)

    signals.listener = on_signal
    text: str | None = None
    try:
        text = editor.read()
    except Stopped as stopped:
        received.append(stopped.exit_code - 128)
    except KeyboardInterrupt:
        received.append(signal.SIGINT)
    finally:
        signals.listener = None
        signals.signum = next((signum for signum in received if signum != signal.SIGINT), None)
    if signals.signum is not None:
        raise Stopped(signals.signum)
    if received or text is None:
        raise KeyboardInterrupt
    return text
