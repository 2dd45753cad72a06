"""Turns every error that ends the program into a message and an exit code."""

from __future__ import annotations

import errno
import traceback

from specgen.cli.signals import Stopped
from specgen.cli.stdout import discard_stdout
from specgen.cli.streams import Messages, write_error_document
from specgen.cli.usage import usage_error, wants_json
from specgen.core.errors import OutputError, SpecgenError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Interrupted(SpecgenError):
    """A signal ended the program. Reported only in JSON, where a script waits for a document.

    Args:
        exit_code: 128 plus the number of the signal.
    """

    code = "interrupted"

    def __init__(self, exit_code: int) -> None:
        super().__init__("a signal ended the run")
        self.exit_code = exit_code


def internal_error(error: Exception) -> SpecgenError:
    """Returns the error to report for an exception that the program did not expect: a bug, or a device that failed."""
    if type(error).__name__ == "AcceleratorError" or "device-side assert" in str(error):
        return SpecgenError(
            f"the device failed: {str(error).splitlines()[0]}", "start specgen again: this run can't use the device"
        )
    return SpecgenError(f"unexpected {type(error).__name__}: {error}", "this is a bug; run again with -vv for details")


def disk_error(error: OSError) -> OutputError | None:
    """Returns the error to report if stdout's disk is full or broken; None for any other `OSError`."""
    if error.errno not in _DISK_ERRORS:
        return None
    return OutputError(f"cannot write the output: {error.strerror or error}")


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
