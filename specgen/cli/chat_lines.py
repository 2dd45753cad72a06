"""A line of a chat, or the signal that came instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.cli.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from specgen.cli.line_editor import LineEditor

INTERRUPTED = 130


def read_line(editor: LineEditor, signals: StopSignals) -> str:
    """Wait for a line.

    Args:
        editor: Where it comes from.
        signals: Entered by the caller; Ctrl-C leaves no trace in it.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Stopped: Another signal.
        EOFError: There are no more lines.
    """

    def on_signal() -> None:
        if not editor.interrupt():
            raise Stopped(signals.signum or 0)

    signals.listener = on_signal
    try:
        text = editor.read()
    finally:
        signals.listener = None
    if signals.exit_code == INTERRUPTED:
        signals.signum = None
        raise KeyboardInterrupt
    if signals.signum is not None:
        raise Stopped(signals.signum)
    return text
