"""Lists the commands: their options are imported here, and what runs them only when a command is run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Annotated, Any, Literal

from specgen.cli.app_spec import Command, Option, Program
from specgen.cli.batch import options as batch
from specgen.cli.bench import options as bench
from specgen.cli.chat import options as chat
from specgen.cli.distill import options as distill
from specgen.cli.doctor import options as doctor
from specgen.cli.drafts import options as drafts
from specgen.cli.export import options as export
from specgen.cli.generate import options as generate
from specgen.cli.options.fields import describe
from specgen.cli.verify import options as verify

HELP = "Speculative text generation on your own machine: a draft guesses, your model checks, you watch."


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


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command.

    Args:
        name: As typed; also its folder in `specgen.cli`, whose module `run` runs it.
        options: Its dataclass of options.
        module: The module `options` of its folder, with its help and epilog.
    """

    name: str
    options: type[Any]
    module: ModuleType

    def describe(self) -> Command:
        """Returns what the command takes."""
        return describe(self.name, self.module.HELP, self.options, self.module.EPILOG)

    def run(self, options: Any) -> int:
        """Imports what the command needs, runs it and returns the exit code."""
        return int(importlib.import_module(f"specgen.cli.{self.name}.run").run(options))


COMMANDS = (
    CommandEntry("generate", generate.GenerateOptions, generate),
    CommandEntry("chat", chat.ChatOptions, chat),
    CommandEntry("verify", verify.VerifyOptions, verify),
    CommandEntry("bench", bench.BenchOptions, bench),
    CommandEntry("distill", distill.DistillOptions, distill),
    CommandEntry("doctor", doctor.DoctorOptions, doctor),
    CommandEntry("drafts", drafts.DraftsOptions, drafts),
    CommandEntry("batch", batch.BatchOptions, batch),
    CommandEntry("export", export.ExportOptions, export),
)


@cache
def program() -> Program:
    """Returns the program with its commands, for help, completions and the manual page."""
    return Program(describe("", HELP, RootOptions), tuple(command.describe() for command in COMMANDS))
