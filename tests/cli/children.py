"""Runs the command line in processes: to the end, stopped at an exact place, or on a terminal.

All are forks of the fork server (`tests.processes.server`) unless a test asks for a new interpreter.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.cli.barrier import VARIABLE
from tests.processes.environment import ROOT, TIMEOUT_SECONDS, environment
from tests.processes.forked import ForkedProcess, Pipes, client_command

__all__ = ["ROOT", "SCRIPTED", "TIMEOUT_SECONDS", "TOY", "Child", "Ended", "environment", "run_child", "shell"]

SCRIPTED = "tests.cli.scripted_child"
TOY = "tests.cli.toy_child"
_ANNOUNCE, _WAIT = 200, 201
"""A child's numbers of the barrier's pipes."""


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code, stdout and stderr."""

    code: int
    out: bytes
    err: str


def run_child(
    *arguments: str,
    module: str = SCRIPTED,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Ended:
    """Runs the command line to its end.

    Args:
        *arguments: Of the command line.
        module: As for `python -m`.
        stdin: Comes through a pipe; None: stdin is /dev/null.
        env: Further environment.
        fresh: Start a new interpreter, for what an interpreter decides as it starts.
    """
    if fresh:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=environment(**(env or {})),
            cwd=ROOT,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr.decode())
    pipes = Pipes(stdin)
    process = ForkedProcess(module, arguments, environment(**(env or {})), pipes.descriptors)
    pipes.started()
    try:
        out, err = pipes.result()
        return Ended(process.wait(), out, err.decode())
    finally:
        process.kill()  # one that hangs; does nothing if it has ended


def shell(script: str, *, module: str = SCRIPTED, **env: str) -> Ended:
    """Runs a bash script in which `specgen` is the command line."""
    words = " ".join(f'"{word}"' for word in client_command(module))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'specgen() {{ {words} "$@"; }}\n{script}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(**env),
        cwd=ROOT,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


class Child:
    """A child that waits at a place until `go_on`; see `tests.cli.barrier`.

    Args:
        *arguments: Of the command line.
        place: Where it waits.
        module: What is run.
        on_terminal: Stdin, stdout and stderr are one terminal of 80 columns; `out` is everything written to it.
        ignores: A signal that the child ignores from its start.
        env: Further environment.
    """

    def __init__(
        self,
        *arguments: str,
        place: str,
        module: str = SCRIPTED,
        on_terminal: bool = False,
        ignores: signal.Signals | None = None,
        **env: str,
    ) -> None:
        self._announced, announce = os.pipe()
        wait, self._go = os.pipe()
        self._master: int | None = None
        self._pipes: Pipes | None = None
        if on_terminal:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            streams = dict.fromkeys((0, 1, 2), slave)
        else:
            self._pipes = Pipes()
            streams = self._pipes.descriptors
        self.process = ForkedProcess(
            module,
            arguments,
            environment(**{VARIABLE: f"{place}:{_ANNOUNCE}:{_WAIT}"}, **env),
            {**streams, _ANNOUNCE: announce, _WAIT: wait},
            ignored_signals=[] if ignores is None else [ignores],
            is_session=on_terminal,
        )
        for descriptor in (announce, wait, *([slave] if on_terminal else [])):
            os.close(descriptor)
        if self._pipes is not None:
            self._pipes.started()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self._announced, self._go, *([] if self._master is None else [self._master])):
            os.close(descriptor)

    def wait_at_place(self) -> None:
        assert self._read_announcement() == b"p", "the child ended before its place"

    def send(self, signum: signal.Signals) -> None:
        """Sends a signal and waits until the program has handled it."""
        self.process.send_signal(signum)
        assert self._read_announcement() == b"s", "the child did not handle the signal"

    def press_ctrl_c(self) -> None:
        assert self._master is not None
        os.write(self._master, b"\x03")
        assert self._read_announcement() == b"s", "the child did not handle Ctrl-C"

    def go_on(self) -> None:
        os.write(self._go, b"g")

    def finish(self) -> Ended:
        """Waits for the end of the child."""
        if self._pipes is not None:
            out, err = self._pipes.result()
            return Ended(self.process.wait(), out, err.decode())
        assert self._master is not None
        shown = b""
        while True:
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # EIO: the last process closed the terminal
                break
            if not chunk:
                break
            shown += chunk
        return Ended(self.process.wait(), shown, "")

    def _read_announcement(self) -> bytes:
        ready, _, _ = select.select([self._announced], [], [], TIMEOUT_SECONDS)
        assert ready, "the child announced nothing"
        return os.read(self._announced, 1)
