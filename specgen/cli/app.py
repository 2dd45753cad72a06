"""The command line: gives the words to the command that they name."""

from __future__ import annotations

import sys

import typer

from specgen.cli.help import HelpCommand, HelpGroup
from specgen.cli.options.flatten import flattened
from specgen.cli.program import COMMANDS, ROOT
from specgen.cli.root.options import RootOptions
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.usage import wants_json
from specgen.core.errors import SettingsError

_NO_COMMAND = -1


def main() -> None:
    """Runs the program and exits with its exit code."""
    if sys.platform == "win32":
        sys.exit("specgen runs on Linux and macOS; on Windows use WSL")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the program.

    Returns:
        The exit code; see `specgen.core.errors`, and 130, 143, 129 for signals, 0 if the reader closed the pipe.
    """
    try:
        # A command watches for signals itself once it has imported what it needs.
        with StopSignals():
            code = _run(arguments)
        # Help and version are still in the buffer: a full disk is reported here. After any other exit code the error
        # is reported already, and the terminal may be gone.
        if code == 0 and sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # noqa: BLE001 - every error of the program ends here
        # At once: a second signal during the imports below would show a traceback.
        if isinstance(error, Stopped) and not wants_json(arguments):
            return error.exit_code
        # Its imports take 0.1 s, which help and completion don't need.
        from specgen.cli.failures import exit_code_of

        return exit_code_of(error, arguments)


def make_app() -> typer.Typer:
    """Returns the commands and options as Typer reads them."""
    app = typer.Typer(
        name="specgen",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(cls=HelpGroup, invoke_without_command=True)(flattened(RootOptions)(_run_root))
    for command in COMMANDS:
        app.command(command.name, cls=HelpCommand)(flattened(command.options)(command.run))
    return app


def _run(arguments: list[str]) -> int:
    # Without arguments: the help, and the exit code of a usage error.
    code = make_app()(arguments or ["--help"], prog_name="specgen", standalone_mode=False) or 0
    if code == _NO_COMMAND:
        raise SettingsError("the command is missing", "see specgen --help")
    return int(code) if arguments else 2


def _run_root(options: RootOptions) -> int:
    """Answers the options of the program itself; the result counts only if no command follows."""
    if options == RootOptions():
        return _NO_COMMAND
    raise typer.Exit(ROOT.run(options))
