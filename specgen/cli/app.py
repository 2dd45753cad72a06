"""The command line: registers the commands, and is the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from copy import copy
from itertools import pairwise
from typing import Annotated, Literal

import typer

from specgen import __version__
from specgen.cli.bench.run import EPILOG as BENCH_EPILOG
from specgen.cli.bench.run import bench
from specgen.cli.chat.run import EPILOG as CHAT_EPILOG
from specgen.cli.chat.run import chat
from specgen.cli.distill.run import EPILOG as DISTILL_EPILOG
from specgen.cli.distill.run import distill
from specgen.cli.doctor.run import EPILOG as DOCTOR_EPILOG
from specgen.cli.doctor.run import doctor
from specgen.cli.errors import Interrupted, disk_error, internal_error
from specgen.cli.generate.run import EPILOG, generate
from specgen.cli.help import help_classes, page
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import discard_stdout
from specgen.cli.verify.run import EPILOG as VERIFY_EPILOG
from specgen.cli.verify.run import verify
from specgen.core.errors import SpecgenError

app = typer.Typer(
    name="specgen",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Group, _Command = help_classes(app)
app.command("generate", epilog=EPILOG, cls=_Command)(generate)
app.command("chat", epilog=CHAT_EPILOG, cls=_Command)(chat)
app.command("verify", epilog=VERIFY_EPILOG, cls=_Command)(verify)
app.command("bench", epilog=BENCH_EPILOG, cls=_Command)(bench)
app.command("distill", epilog=DISTILL_EPILOG, cls=_Command)(distill)
app.command("doctor", epilog=DOCTOR_EPILOG, cls=_Command)(doctor)


_COMMANDS = frozenset(info.name for info in app.registered_commands)
_TAB_ASKS = (("--list", "models"), ("--list", "sessions"))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specgen {__version__}")
        raise typer.Exit


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        from specgen.cli.app_spec import describe
        from specgen.cli.completions import SCRIPTS

        typer.echo(SCRIPTS[shell](describe(app)), nl=False)
        raise typer.Exit


def _list_names(kind: str | None) -> None:
    if kind is not None:
        from specgen.cli.local_names import NAMES

        typer.echo("\n".join(NAMES[kind]()))
        raise typer.Exit


@app.callback(cls=_Group)
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    completion: Annotated[
        Literal["bash", "zsh", "fish", "powershell"] | None,
        typer.Option(
            "--show-completion", callback=_show_completion, is_eager=True, help="Show the completion for a shell."
        ),
    ] = None,
    names: Annotated[
        Literal["models", "sessions"] | None,
        typer.Option(
            "--list", callback=_list_names, is_eager=True, help="List the models or saved sessions on this machine."
        ),
    ] = None,
) -> None:
    """Speculative text generation on your own machine: a draft guesses, your model checks, you watch."""


def main() -> None:
    """Run the program and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the program.

    Returns:
        The exit code; see `specgen.core.errors`, and 130, 143, 129 for signals, 0 for a reader that left early.
    """
    try:
        # Signals are watched from here on; a command does so itself, once it has imported what it needs.
        with StopSignals():
            code = 0 if _is_answered(arguments) else _run_command(arguments)
        # Help and version are still in the buffer; a full disk shows here, and not on the interpreter's way out. What
        # ended otherwise has its code already, and its terminal may be gone.
        if code == 0 and sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Stopped as stopped:
        return _stopped_early(stopped, arguments)
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit) as ended:
        # Click turns a reader that left into an exit with 1, and exits in no other way here.
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        discard_stdout()
        return 0
    except SpecgenError as error:
        return _tell(error, arguments)
    except OSError as error:
        if (failure := disk_error(error)) is None:
            return _unforeseen(error, arguments)
        discard_stdout()
        return _tell(failure, [])
    except Exception as error:  # noqa: BLE001 - the one place where anything at all is met
        return _unforeseen(error, arguments)


def _is_answered(arguments: list[str]) -> bool:
    """Answer what is asked most often without Typer, which reads all options of all commands first."""
    if tuple(arguments) in _TAB_ASKS:
        with suppress(typer.Exit):
            _list_names(arguments[1])
        return True
    if arguments in (["-h"], ["--help"]):
        typer.echo(page(app, None), nl=False)
        return True
    if len(arguments) == 2 and arguments[0] in _COMMANDS and arguments[1] in ("-h", "--help"):
        typer.echo(page(app, arguments[0]), nl=False)
        return True
    return False


def _run_command(arguments: list[str]) -> int:
    asked = copy(app)
    if arguments and arguments[0] in _COMMANDS:
        # Typer makes the options of all commands it is given, though one is asked for: 0.06 s instead of 0.015.
        asked.registered_commands = [info for info in app.registered_commands if info.name == arguments[0]]
    # Without a word the help, which is no error of ours, but not what anyone asked for either.
    return asked(arguments or ["--help"], prog_name="specgen", standalone_mode=False) or (0 if arguments else 2)


def _tell(error: SpecgenError, arguments: list[str]) -> int:
    """An error that no command has told: on stderr, and as a document where one was asked for."""
    from specgen.cli.streams import Messages, write_error_document

    if _wants_json(arguments) and not error.is_reported:
        write_error_document(error)
    if "-vv" in arguments and error.exit_code == SpecgenError.exit_code:
        traceback.print_exc()
    Messages("auto", quiet=False).error(error)
    return error.exit_code


def _stopped_early(stopped: Stopped, arguments: list[str]) -> int:
    """A signal that came before the command watched for one, and so before it wrote anything."""
    if _wants_json(arguments):
        from specgen.cli.streams import write_error_document

        write_error_document(Interrupted(stopped.exit_code))
    return stopped.exit_code


def _wants_json(arguments: list[str]) -> bool:
    """Whether the words ask for JSON; they may be wrong otherwise, so nothing has parsed them."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    forms = [word.removeprefix("--format=") for word in words if word.startswith("--format=")]
    forms += [form for name, form in pairwise(words) if name == "--format"]
    return "--json" in words or "json" in forms or "ndjson" in forms


def _unforeseen(error: Exception, arguments: list[str]) -> int:
    """A wrong use of the command line, or a bug of ours."""
    # Typer's usage errors have no public base class; these two attributes are what they are printed from.
    message, exit_code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if callable(message) and isinstance(exit_code, int):
        from specgen.cli.app_spec import describe
        from specgen.cli.usage import usage_error

        # Without any word at all there is none about it: the help is shown instead.
        if told := usage_error(error, describe(app)):
            _tell(told, arguments)
        return exit_code
    return _tell(internal_error(error), arguments)
