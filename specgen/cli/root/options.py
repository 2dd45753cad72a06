"""The options of the program itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from specgen.cli.app_spec import Option

HELP = "Speculative text generation on your own machine: a draft guesses, your model checks, you watch."
EPILOG = ""


@dataclass(frozen=True, slots=True)
class RootOptions:
    """The options of the program itself."""

    version: Annotated[bool, Option(("-V", "--version"), "Print the version.")] = False
    completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        Option(("--show-completion",), "Print the completion script for a shell."),
    ] = None
    names: Annotated[
        Literal["models", "sessions"] | None,
        Option(("--list",), "List the models or saved sessions on this machine."),
    ] = None
