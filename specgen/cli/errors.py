"""Maps what ends a command to an error with an exit code: a signal, a full disk, a bug, a device that failed."""

from __future__ import annotations

import errno

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
