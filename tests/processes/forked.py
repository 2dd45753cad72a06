"""Starts processes on the fork server, with the interface of `subprocess.Popen` as far as tests need it."""

from __future__ import annotations

import atexit
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.processes.client import READY, send_request
from tests.processes.environment import ROOT, TIMEOUT_SECONDS, environment


@functools.cache
def server_socket() -> str:
    """Starts a fork server of this test process, once, and returns its socket."""
    folder = tempfile.mkdtemp(prefix="specgen-")
    path = f"{folder}/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.processes.server", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"),
        cwd=ROOT,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    if server.stdout.readline() != READY:
        raise RuntimeError(f"the fork server ended with {server.wait()} before it was ready; its stderr says why")

    def stop(stdin: IO[bytes] = server.stdin) -> None:
        stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    return path


class ForkedProcess:
    """A child of the fork server.

    Args:
        module: As for `python -m`.
        arguments: Of the command line.
        env: All of its environment.
        descriptors: The child's number of a descriptor -> ours. Of 0, 1 and 2, those not named are closed.
        ignored_signals: Signals that it ignores from its start.
        is_session: It leads a session, whose terminal is its stdin.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        descriptors: Mapping[int, int],
        *,
        ignored_signals: Sequence[int] = (),
        is_session: bool = False,
    ) -> None:
        self._connection = send_request(
            server_socket(),
            descriptors,
            module=module,
            arguments=list(arguments),
            environment=dict(env),
            folder=str(ROOT),
            ignored_signals=list(ignored_signals),
            is_session=is_session,
        )
        self._answer = self._connection.makefile("rb", buffering=0)
        self.pid = int(self._answer.readline())
        self.returncode: int | None = None

    def wait(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Waits for the end; returns the exit code, of a signal as a negative one."""
        if not self._has_ended(timeout_seconds):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_seconds)
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        self._has_ended(0)
        return self.returncode

    def send_signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout_seconds: float) -> bool:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout_seconds):
                    return False
            self.returncode = int(self._answer.readline())
            self._answer.close()
            self._connection.close()
        return True


class Pipes:
    """Feeds a child's stdin and collects its stdout and stderr, all at once.

    Args:
        stdin: What the child reads; None for /dev/null.
    """

    def __init__(self, stdin: bytes | None = None) -> None:
        self._threads: list[threading.Thread] = []
        self._collected: dict[int, bytes] = {1: b"", 2: b""}
        self._childs = {0: self._source(stdin), 1: self._sink(1), 2: self._sink(2)}

    @property
    def descriptors(self) -> dict[int, int]:
        """The child's ends by their numbers there, until `started`."""
        return dict(self._childs)

    def started(self) -> None:
        """Closes the child's ends here, and begins to read and write."""
        for descriptor in self._childs.values():
            os.close(descriptor)
        for thread in self._threads:
            thread.start()

    def result(self) -> tuple[bytes, bytes]:
        """Waits until all ends are closed; returns stdout and stderr."""
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS)
            if thread.is_alive():
                raise TimeoutError("the child's output has no end")
        return self._collected[1], self._collected[2]

    def _source(self, data: bytes | None) -> int:
        if data is None:
            return os.open(os.devnull, os.O_RDONLY)
        child, ours = os.pipe()
        self._threads.append(threading.Thread(target=_write_all, args=(ours, data), daemon=True))
        return child

    def _sink(self, number: int) -> int:
        ours, child = os.pipe()

        def collect() -> None:
            with open(ours, "rb") as file:
                self._collected[number] = file.read()

        self._threads.append(threading.Thread(target=collect, daemon=True))
        return child


def _write_all(descriptor: int, data: bytes) -> None:
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass  # the child ended without reading it all


CLIENT = Path(__file__).with_name("client.py")


def client_command(module: str) -> list[str]:
    """Returns the command that stands for `python -m MODULE` in a shell's script."""
    return [sys.executable, "-I", "-S", str(CLIENT), server_socket(), module]
