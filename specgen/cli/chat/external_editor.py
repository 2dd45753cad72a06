"""Opens the user's editor on a text."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from specgen.core.errors import SettingsError


def edit_text(text: str) -> str:
    """Opens $VISUAL, $EDITOR or vi on a text; returns the text as the user saved it.

    Raises:
        SettingsError: The editor can't be started, or it failed.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="specgen-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        # Ctrl-C belongs to the editor. A handler that does nothing, unlike SIG_IGN, is reset in the child process.
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            done = subprocess.run([*shlex.split(command), str(path)], stdin=sys.stdin, check=False)  # noqa: S603
            edited = path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            raise SettingsError(f"can't start the editor {command}: {error}", "set EDITOR to another one") from error
        finally:
            signal.signal(signal.SIGINT, previous)
    if done.returncode:
        raise SettingsError(f"the editor {command} exited with code {done.returncode}", "nothing was sent")
    return edited
