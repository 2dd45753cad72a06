"""Lists the exit codes of the program. The README explains them to users; each error of `core.errors` has one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What ended the program. A signal ends it with 128 plus the number of the signal."""

    SUCCESS = 0
    INTERNAL_ERROR = 1
    USAGE = 2
    LOAD = 3
    PAIR = 4
    DEVICE = 5
    DIFFERENT_TEXT = 6
    OUTPUT = 7
    NUMERICAL = 8
    LIMIT = 9
    SERVER = 10
    BATCH = 11
    HANGUP = 129
    CTRL_C = 130
    TERMINATED = 143
