"""The command line: registers the commands, and is the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from specgen import __version__
from specgen.cli.chat import EPILOG as CHAT_EPILOG
from specgen.cli.chat import chat
from specgen.cli.generate import EPILOG, generate
from specgen.cli.signals import Stopped
from specgen.errors import SettingsError, SpecgenError

app = typer.Typer(
    name="specgen",
    help="Speculative text generation on your own machine: a draft guesses, your model checks, you watch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", epilog=EPILOG)(generate)
app.command("chat", epilog=CHAT_EPILOG)(chat)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Speculative text generation on your own machine: a draft guesses, your model checks, you watch."""


def main() -> None:
    """Run the program and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the program.

    Returns:
        The exit code; see `specgen.errors`, and 130, 143, 129 for signals, 0 for a reader that left early.
    """
    try:
        return app(arguments, prog_name="specgen", standalone_mode=False) or 0
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        from specgen.cli.output import silence_stdout

        silence_stdout()
        return 0
    except SpecgenError as error:
        from specgen.cli.output import Messages

        Messages("auto", quiet=False).error(error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where anything at all is met
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    """A wrong use of the command line, or a bug of ours."""
    from specgen.cli.output import Messages, unforeseen

    messages = Messages("auto", quiet=False)
    # Typer's usage errors have no public base class; these two attributes are what they are printed from.
    describe, exit_code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if callable(describe) and isinstance(exit_code, int):
        # Without any word at all there is none about it: the help is shown instead.
        if text := str(describe()):
            messages.error(SettingsError(text, f"see {_help_command(error)}"))
        return exit_code
    if "-vv" in sys.argv or os.environ.get("SPECGEN_DEBUG") == "1":
        traceback.print_exc()
    messages.error(unforeseen(error))
    return SpecgenError.exit_code


def _help_command(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{getattr(context, 'command_path', 'specgen')} --help"
