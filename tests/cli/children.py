"""The command line in processes of its own: plain ones, ones stopped at an exact place, and ones on a terminal."""

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
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cli.barrier import VARIABLE

ROOT = Path(__file__).parent.parent.parent
SCRIPTED = "tests.cli.scripted_child"
TOY = "tests.cli.toy_child"
TIMEOUT_SECONDS = 100


@dataclass(frozen=True)
class Ended:
    """What a child left behind."""

    code: int
    out: bytes
    err: str


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would change a result: options, colours, the terminal's size."""
    dropped = ("SPECGEN_", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS", "LINES", "PYTEST_", "HF_HUB_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    ours = {"OMP_NUM_THREADS": "1", "TERM": "xterm", "SPECGEN_CACHE": "/proc/x", "SPECGEN_BACKEND": "transformers"}
    return {**kept, **ours, **changes}


def run_child(
    *arguments: str, module: str = SCRIPTED, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> Ended:
    """Run the command line to its end."""
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


def shell(script: str, *, module: str = SCRIPTED, **env: str) -> Ended:
    """Run a bash script in which `specgen` is the command line."""
    function = f'specgen() {{ "{sys.executable}" -m {module} "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", function + script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(**env),
        cwd=ROOT,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


class Child:
    """A child that waits at a place until told to go on; see `tests.cli.barrier`.

    Args:
        *arguments: Of the command line.
        place: Where it waits.
        module: What is run.
        on_terminal: Stdin, stdout and stderr are one terminal of 80 columns; `out` is all it was sent.
        ignores: A signal the child is started with ignoring.
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
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        slave: int | None = None
        if on_terminal:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)

        def prepare() -> None:
            if on_terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if ignores is not None:
                signal.signal(ignores, signal.SIG_IGN)

        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            **streams,
            env=environment(**{VARIABLE: f"{place}:{announce}:{wait}"}, **env),
            cwd=ROOT,
            pass_fds=(announce, wait),
            start_new_session=on_terminal,
            preexec_fn=prepare,
        )
        for descriptor in (announce, wait, *([] if slave is None else [slave])):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        for descriptor in (self._announced, self._go, *([] if self._master is None else [self._master])):
            os.close(descriptor)

    def wait_at_place(self) -> None:
        assert self._read_announcement() == b"p", "the child ended before its place"

    def send(self, signum: signal.Signals) -> None:
        """Send a signal and wait until the program has dealt with it."""
        self.process.send_signal(signum)
        assert self._read_announcement() == b"s", "the child did not deal with the signal"

    def press_ctrl_c(self) -> None:
        assert self._master is not None
        os.write(self._master, b"\x03")
        assert self._read_announcement() == b"s", "the child did not deal with Ctrl-C"

    def go_on(self) -> None:
        os.write(self._go, b"g")

    def finish(self) -> Ended:
        """Wait for its end."""
        if self._master is None:
            out, err = self.process.communicate(timeout=TIMEOUT_SECONDS)
            return Ended(self.process.returncode, out, err.decode())
        shown = b""
        while True:
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # EIO: the last process has left the terminal
                break
            if not chunk:
                break
            shown += chunk
        return Ended(self.process.wait(TIMEOUT_SECONDS), shown, "")

    def _read_announcement(self) -> bytes:
        ready, _, _ = select.select([self._announced], [], [], TIMEOUT_SECONDS)
        assert ready, "the child announced nothing"
        return os.read(self._announced, 1)
