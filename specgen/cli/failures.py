"""Turns every error that ends the program into a message and an exit code."""

from __future__ import annotations

import traceback

from specgen.cli.errors import Interrupted, disk_error, internal_error
from specgen.cli.signals import Stopped
from specgen.cli.stdout import discard_stdout
from specgen.cli.streams import Messages, write_error_document
from specgen.cli.usage import usage_error, wants_json
from specgen.core.errors import SpecgenError


def exit_code_of(error: BaseException, arguments: list[str]) -> int:
    """Reports an error, on stderr and as a JSON document if one was requested, and returns the exit code."""
    match error:
        case Stopped():
            # The command had not written anything: otherwise it ends the answer itself.
            if wants_json(arguments):
                write_error_document(Interrupted(error.exit_code))
            return error.exit_code
        case BrokenPipeError():
            discard_stdout()
            return 0
        case SystemExit():
            # Typer exits with 1 if the reader closed the pipe, and in no other case here.
            if not isinstance(error.__context__, BrokenPipeError):
                raise error
            discard_stdout()
            return 0
        case SpecgenError():
            return _report(error, arguments)
        case OSError() if failure := disk_error(error):
            discard_stdout()
            return _report(failure, [])
        case Exception():
            return _unexpected(error, arguments)
        case _:
            raise error


def _unexpected(error: Exception, arguments: list[str]) -> int:
    """Reports a wrong use of the command line, or a bug of ours."""
    # Typer's usage errors have no public base class. These two attributes are what it prints them from.
    message, exit_code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if callable(message) and isinstance(exit_code, int):
        if reported := usage_error(error):
            _report(reported, arguments)
        return exit_code
    return _report(internal_error(error), arguments)


def _report(error: SpecgenError, arguments: list[str]) -> int:
    if wants_json(arguments) and not error.is_reported:
        write_error_document(error)
    if "-vv" in arguments and error.exit_code == SpecgenError.exit_code:
        traceback.print_exc()
    Messages("auto", quiet=False).error(error)
    return error.exit_code
