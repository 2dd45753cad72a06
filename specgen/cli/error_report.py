"""Turns every error that ends the program into a message and an exit code."""

from __future__ import annotations

import errno
import traceback

from specgen.cli.signals import Stopped
from specgen.cli.streams import Messages, discard_stdout, write_error_document
from specgen.core.errors import OutputError, SettingsError, SpecgenError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_EXTRA_ARGUMENT = "Got unexpected extra argument(s)"


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


def exit_code_of(error: BaseException, *, as_json: bool, with_traceback: bool) -> int:
    """Reports an error on stderr, and returns the exit code.

    Args:
        error: What ended the program.
        as_json: Also write a JSON document to stdout.
        with_traceback: Print the traceback of a bug.
    """
    match error:
        case Stopped():
            # The command had not written anything: otherwise it ends the answer itself.
            if as_json:
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
            failure = error
        case OSError() if error.errno in _DISK_ERRORS:
            discard_stdout()
            failure, as_json = OutputError(f"can't write the output: {error.strerror or error}"), False
        case Exception():
            failure = _usage_error(error) or internal_error(error)
        case _:
            raise error
    if as_json and not failure.is_reported:
        write_error_document(failure)
    if with_traceback and failure.exit_code == SpecgenError.exit_code:
        traceback.print_exc()
    Messages("auto", quiet=False).error(failure)
    return failure.exit_code


def _usage_error(error: Exception) -> SettingsError | None:
    """Returns the error to report for a command line that Typer could not parse; None for any other exception."""
    # Typer's usage errors have no public base class; it prints them with this method.
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context, text = getattr(error, "ctx", None), str(format_message())
    see = f"see {getattr(context, 'command_path', 'specgen')} --help"
    option = str(getattr(error, "option_name", ""))
    if option[:1] == "-" and option[1:2] not in ("", "-") and not option[1:2].isalpha():
        return SettingsError(text, f"put -- before a prompt that begins with a dash; {see}")
    if text.startswith(_EXTRA_ARGUMENT) and getattr(context, "info_name", "") == "generate":
        return SettingsError(
            f"more than one prompt{text.removeprefix(_EXTRA_ARGUMENT)}", f"put the prompt into quotes; {see}"
        )
    return SettingsError(text, see)
