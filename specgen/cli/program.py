"""Lists the commands: their options are imported here, and what runs them only when a command is run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from specgen.cli.app_spec import Command, Program
from specgen.cli.bench import options as bench
from specgen.cli.chat import options as chat
from specgen.cli.distill import options as distill
from specgen.cli.doctor import options as doctor
from specgen.cli.generate import options as generate
from specgen.cli.options.fields import describe
from specgen.cli.root import options as root
from specgen.cli.verify import options as verify


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command, or the program itself if the name is empty.

    Args:
        name: As typed.
        options: Its dataclass of options.
        module: The module `options` of the command, with its help and epilog. The module `run` next to it runs it.
    """

    name: str
    options: type[Any]
    module: ModuleType

    def describe(self) -> Command:
        """Returns what the command takes."""
        return describe(self.name, self.module.HELP, self.options, self.module.EPILOG)

    def run(self, options: Any) -> int:
        """Imports what the command needs, runs it and returns the exit code."""
        return int(importlib.import_module(f"{self.module.__package__}.run").run(options))


ROOT = CommandEntry("", root.RootOptions, root)
COMMANDS = (
    CommandEntry("generate", generate.GenerateOptions, generate),
    CommandEntry("chat", chat.ChatOptions, chat),
    CommandEntry("verify", verify.VerifyOptions, verify),
    CommandEntry("bench", bench.BenchOptions, bench),
    CommandEntry("distill", distill.DistillOptions, distill),
    CommandEntry("doctor", doctor.DoctorOptions, doctor),
)


@cache
def program() -> Program:
    """Returns the program with its commands, for help, completions and the manual page."""
    return Program(ROOT.describe(), tuple(command.describe() for command in COMMANDS))
