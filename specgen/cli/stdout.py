"""Checks and prepares stdout. Imports the standard library only, so that every command can use it before its work."""

from __future__ import annotations

import os
import sys

from specgen.core.errors import OutputError


def require_stdout(what: str) -> None:
    """Checks that stdout is open, before any work is done for it.

    Args:
        what: What the command would write, as in `the answer`.

    Raises:
        OutputError: stdout is closed.
    """
    if sys.stdout is None:
        raise OutputError(f"cannot write {what}: stdout is closed", "leave stdout open, or redirect it to a file")


def use_utf8_stdout() -> None:
    """Makes stdout's text UTF-8: a name outside the environment's encoding must not raise an exception."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


def discard_stdout() -> None:
    """Points stdout at the null device, because the interpreter flushes it once more when it exits."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
