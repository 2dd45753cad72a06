"""Answers the options of the program itself: its version, completion scripts, and names for completion."""

from __future__ import annotations

import re
from collections.abc import Iterable

from specgen.cli.completions import SCRIPTS
from specgen.cli.program import RootOptions, program
from specgen.core import __version__
from specgen.loading.names import known_names
from specgen.storage.saved_chats import LAST, SessionFolder

_SAFE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""Shells expand what a completion returns, and a folder can have any name: only these names are safe."""


def run(options: RootOptions) -> int:
    """Prints the version, a completion script or a list of names, and returns the exit code."""
    if options.version:
        print(f"specgen {__version__}")
    elif options.completion is not None:
        print(SCRIPTS[options.completion](program()), end="")
    elif options.names is not None:
        print("\n".join(model_names() if options.names == "models" else session_names()))
    return 0


def model_names() -> list[str]:
    """Returns the built-in model and the models in the hub's cache."""
    return _safe(known_names())


def session_names() -> list[str]:
    """Returns `last`, then the saved sessions of `specgen chat`, newest first."""
    return [LAST, *_safe(entry.name for entry in SessionFolder().entries())]


def _safe(names: Iterable[str]) -> list[str]:
    return [name for name in names if _SAFE_NAME.fullmatch(name)]
