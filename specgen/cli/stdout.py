"""The stdout a command needs before it starts its work."""

from __future__ import annotations

import sys

from specgen.core.errors import OutputError


def require_stdout(what: str) -> None:
    """Refuse to work for a reader that can't be there.

    Args:
        what: What would be written, as in `the answer`.

    Raises:
        OutputError: stdout is closed.
    """
    if sys.stdout is None:
        raise OutputError(f"cannot write {what}: stdout is closed", "leave stdout open, or send it to a file")


def write_utf8() -> None:
    """A path or a name no encoding of the environment knows must not end the program."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
