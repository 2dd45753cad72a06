"""The command line: gives the words to the command that they name."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import typer

from specgen.cli.app_spec import Option
from specgen.cli.help import HelpCommand, HelpGroup
from specgen.cli.options.fields import build, options_of
from specgen.cli.program import COMMANDS, RootOptions
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import SettingsError
from specgen.core.exit_codes import ExitCode

T = TypeVar("T")
_NO_COMMAND = -1


def start() -> None:
    """Runs the program as a process of its own.

    Once torch is loaded, the end of the interpreter takes 0.3 s, in which it frees what the process's end frees anyway.
    So the process ends at once: files are closed, locks end with it, and what was written is flushed.
    """
    try:
        main()
    except SystemExit as end:
        if "torch" not in sys.modules or not isinstance(end.code, int):
            raise
        flush_streams()
        os._exit(end.code)


def flush_streams() -> None:
    """Flushes stdout and stderr. What can't be written is discarded: at its end Python would exit with 120 instead."""
    for stream in (sys.stdout, sys.stderr):
        # None without a console; the reader may be gone, or the disk full.
        with suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except OSError:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def main() -> None:
    """Runs the program and exits with its exit code."""
    if sys.platform == "win32":
        sys.exit("specgen runs on Linux and macOS; on Windows use WSL")
    for descriptor in range(3):
        # Node.js and others pass on streams that don't block: output was lost, and a late prompt was taken as empty.
        with suppress(OSError):
            os.set_blocking(descriptor, True)
    code = run(sys.argv[1:])
    flush_streams()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs the program.

    Returns:
        The exit code; see `specgen.core.exit_codes`. It is 0 if the reader closed the pipe.
    """
    try:
        # A command that can finish a round or a run after a signal watches for signals itself.
        with StopSignals() as signals:
            code = _run(arguments) or signals.exit_code
        # Help and version are still in the buffer: a full disk is reported here. After any other exit code the error
        # is reported already, and the terminal may be gone.
        if code == 0 and sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return ExitCode.CTRL_C
    except BaseException as error:  # noqa: BLE001 - every error of the program ends here
        as_json = _wants_json(arguments)
        # At once: a second signal during the imports below would show a traceback.
        if isinstance(error, Stopped) and not as_json:
            return error.exit_code
        # Its imports take 0.1 s, which help and completion don't need.
        from specgen.cli.error_report import exit_code_of

        return exit_code_of(error, as_json=as_json, with_traceback="-vv" in arguments)


def make_app() -> typer.Typer:
    """Returns the commands and options as Typer reads them."""
    app = typer.Typer(
        name="specgen",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(cls=HelpGroup, invoke_without_command=True)(flattened(RootOptions, _run_root))
    for command in COMMANDS:
        app.command(command.name, cls=HelpCommand)(flattened(command.options, command.run))
    return app


def flattened(options_class: type[T], run: Callable[[T], int]) -> Callable[..., int]:
    """Returns a function that runs a command, with a parameter for each of its options, for Typer.

    Typer splits the command line into words and reads environment variables. Types, ranges and defaults are those of
    the dataclass: an option that was not given is None or an empty list here.
    """

    def function(context: typer.Context, **words: Any) -> int:
        given = {name: word for name, word in words.items() if word is not None and word != []}
        return run(build(options_class, given, f"see {context.command_path} --help"))

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *map(_parameter, options_of(options_class))]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _parameter(option: Option) -> inspect.Parameter:
    # The number of `-v` is an int; any other value stays a word, so that its errors are ours.
    word: Any = int if option.counts else str if option.value else bool
    word = list[word] if option.is_repeatable and not option.counts else word
    if not option.names:
        info: Any = typer.Argument(metavar=option.value)
    else:
        *names, last = option.names
        names.append("/".join([last, *option.off_names]))
        info = typer.Option(*names, envvar=option.env, count=option.counts)
    return inspect.Parameter(
        option.field,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.is_required else None,
        annotation=Annotated[word if option.is_required else word | None, info],
    )


def _run(arguments: list[str]) -> int:
    with suppress(PermissionError):
        try:
            os.getcwd()
        except FileNotFoundError as error:  # libraries end the process there
            raise SettingsError("the working folder does not exist any more", "change to another one") from error
    # Without arguments: the help, and the exit code of a usage error.
    code = make_app()(arguments or ["--help"], prog_name="specgen", standalone_mode=False) or 0
    if code == _NO_COMMAND:
        raise SettingsError("the command is missing", "see specgen --help")
    return int(code) if arguments else 2


def _run_root(options: RootOptions) -> int:
    """Answers the options of the program itself; the result counts only if no command follows."""
    if options == RootOptions():
        return _NO_COMMAND
    from specgen.cli.root import run as run_root

    raise typer.Exit(run_root(options))


def _wants_json(arguments: list[str]) -> bool:
    """Returns whether JSON is requested. Searches the words, because parsing them may have failed."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    formats = [word.removeprefix("--format=") for word in words if word.startswith("--format=")]
    formats += [value for name, value in pairwise(words) if name == "--format"]
    return "--json" in words or "json" in formats or "ndjson" in formats
