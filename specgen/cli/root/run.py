"""Answers the options of the program itself."""

from __future__ import annotations

from specgen.cli.completions import SCRIPTS
from specgen.cli.local_names import NAMES
from specgen.cli.program import program
from specgen.cli.root.options import RootOptions
from specgen.core.version import __version__


def run(options: RootOptions) -> int:
    """Prints the version, a completion script or a list of names, and returns the exit code."""
    if options.version:
        print(f"specgen {__version__}")
    elif options.completion is not None:
        print(SCRIPTS[options.completion](program()), end="")
    elif options.names is not None:
        print("\n".join(NAMES[options.names]()))
    return 0
