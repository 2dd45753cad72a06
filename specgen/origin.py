"""Where this copy of specgen comes from: its version, and the commit where one is known."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from specgen import __version__

COMMIT_FILE = "commit.txt"
"""Written into wheels and source archives by `.ci/build_hook.py`."""

_PACKAGE = Path(__file__).parent


def version_line() -> str:
    """`specgen 0.1.0 (1a2b3c4d5e6f)`."""
    commit = find_commit(_PACKAGE)
    return f"specgen {__version__}" + (f" ({commit})" if commit else "")


def find_commit(package: Path) -> str | None:
    """The commit this copy was made from, in 12 digits.

    Args:
        package: The folder of the package: of a wheel, which holds a note, or in a git checkout of specgen.
    """
    try:
        noted = (package / COMMIT_FILE).read_text().strip()
    except OSError:
        noted = _ask_git(package.parent)
    return noted if re.fullmatch(r"[0-9a-f]{12}", noted) else None


def _ask_git(checkout: Path) -> str:
    """A virtual environment may lie in somebody else's checkout: only one with our project file counts."""
    if not (checkout / ".git").exists() or not (checkout / "pyproject.toml").exists():
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
