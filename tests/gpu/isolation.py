"""Runs each part in a process of its own, with a deadline: a crash or a hang of one part stops no other.

A failed CUDA kernel makes CUDA unusable for the rest of its process, and a hung one can't be interrupted from Python.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from tests.gpu.models import prepare
from tests.gpu.report import Context, Report

Isolation = Literal["fork", "spawn"]
CANT_FORK = 77
"""Exit code of a forked process in which CUDA can't start, because something started CUDA in the parent."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run.

    Args:
        number: As in the option `--parts`.
        name: What it is about.
        seconds: Its deadline.
        run: Measures and reports.
    """

    number: int
    name: str
    seconds: float
    run: Callable[[Context], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all parts of a run have in common.

    Args:
        device: `cuda` or `cpu`.
        is_tiny: See `Context`.
        figures: File of the figures.
        isolation: Forking takes no time; a spawned process imports everything again.
    """

    device: str
    is_tiny: bool
    figures: Path
    isolation: Isolation = "fork"


def run_parts(parts: Sequence[Part], setup: Setup, seconds: float) -> list[int]:
    """Runs parts in order.

    Args:
        parts: In the order of their importance.
        setup: Of the run.
        seconds: Deadline of the whole run. Parts that begin after it are left out, with a line that says so.

    Returns:
        Numbers of the parts that failed, were overdue, or were left out.
    """
    ends, isolation = monotonic() + seconds, setup.isolation
    failed: list[int] = []
    for part in parts:
        report = Report(setup.figures, part.number)
        left = min(part.seconds, ends - monotonic())
        if left <= 0:
            report.say("left_out", what=part.name)
            failed.append(part.number)
            continue
        started = monotonic()
        code = _run(part, setup, isolation, left)
        if code == CANT_FORK:
            isolation = "spawn"
            code = _run(part, setup, isolation, left)
        if code is None:
            report.say("overdue", what=part.name, limit_s=left)
        elif code < 0:
            report.say("crashed", what=part.name, signal=-code)
        report.say("part_seconds", what=part.name, seconds=monotonic() - started, ok=code == 0)
        if code != 0:
            failed.append(part.number)
    return failed


def _run(part: Part, setup: Setup, isolation: Isolation, seconds: float) -> int | None:
    """Runs a part in a new process. Returns its exit code, negative for a signal; None if it was overdue."""
    context: Any = multiprocessing.get_context(isolation)
    process: BaseProcess = context.Process(target=_in_child, args=(part, setup, isolation))
    process.start()
    try:
        process.join(seconds)
        return process.exitcode
    finally:  # also after Ctrl-C
        if process.exitcode is None:
            _kill(process)


def _kill(process: BaseProcess) -> None:
    """Ends a process with what it started: compilers, for example."""
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _in_child(part: Part, setup: Setup, isolation: Isolation) -> None:
    os.setsid()
    report = Report(setup.figures, part.number)
    try:
        device = prepare(setup.device)
    except RuntimeError as error:
        if isolation == "fork":
            sys.exit(CANT_FORK)
        report.say("error", what=part.name, error=described(error))
        sys.exit(1)
    try:
        part.run(Context(device, setup.is_tiny, report.say))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the next part must run
        traceback.print_exc()
        report.say("error", what=part.name, error=described(error))
        sys.exit(1)


def described(error: BaseException) -> str:
    """Returns an error's class and first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
