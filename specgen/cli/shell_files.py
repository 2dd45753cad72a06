"""Writes the completion scripts and the manual page.

python -m specgen.cli.shell_files completions
"""

from __future__ import annotations

import sys
from pathlib import Path

from specgen.cli.completions import FILES, SCRIPTS
from specgen.cli.manual import manual_page
from specgen.cli.program import program

MANUAL = "specgen.1"


def shell_files() -> dict[str, str]:
    """Returns the contents of the files by name."""
    scripts = {FILES[shell]: script(program()) for shell, script in SCRIPTS.items()}
    return {**scripts, MANUAL: manual_page(program())}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, text in shell_files().items():
        (folder / name).write_text(text, encoding="utf-8")
