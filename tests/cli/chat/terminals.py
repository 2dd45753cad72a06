"""Runs `specgen chat` on a pseudo terminal, in a forked child, so that no test imports torch again.

A forked child shares the libraries of its parent, and those with their own threads (OpenMP, oneDNN) may fail there. It
runs tiny models in float32 only; a test of a real model uses a new interpreter.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect.fdpexpect

from tests.cli.barrier import wait_for_byte

PROMPT, ACCEPTED = "\x1b[?2004h", "\x1b[?2004l"
"""What prompt_toolkit sends before it reads a line, and after it has read one."""
ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[78])")
ENVIRONMENT = {"TERM": "xterm", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "SPECGEN_CACHE": "/proc/x"}
ANNOUNCEMENT_SECONDS = 30
"""A child that announces nothing for longer hangs: it loads a tiny model in less than a second."""
DROPPED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CLICOLOR_FORCE")


def await_byte(descriptor: int) -> bytes:
    """Waits for what a child announces; its output is shown after a failed test, by `Terminal.close`."""
    ready, _, _ = select.select([descriptor], [], [], ANNOUNCEMENT_SECONDS)
    assert ready, f"the child announced nothing in {ANNOUNCEMENT_SECONDS} s"
    return os.read(descriptor, 1)


class Barrier:
    """Stops the model before each round, so that a signal arrives in an exact round. Nothing sleeps."""

    def __init__(self) -> None:
        self._announced, self._announce = os.pipe()
        self._wait, self._release = os.pipe()

    def arm(self) -> None:
        """Patches the model and the signal handler, in the child."""
        from specgen.cli.signals import StopSignals
        from specgen.models.cached_model import CachedModel

        real_logits, real_signal = CachedModel.logits, StopSignals._on_signal

        def logits(model: CachedModel, *arguments: Any, **options: Any) -> Any:
            os.write(self._announce, b"r")
            wait_for_byte(self._wait)
            return real_logits(model, *arguments, **options)

        def on_signal(signals: StopSignals, signum: int, frame: Any) -> None:
            try:
                real_signal(signals, signum, frame)
            finally:
                os.write(self._announce, b"s")

        CachedModel.logits = logits  # type: ignore[method-assign]
        StopSignals._on_signal = on_signal  # type: ignore[method-assign]

    def await_rounds(self, count: int) -> None:
        """Lets rounds pass, and returns while the model waits in the one with this number, counted from 1."""
        for number in range(count):
            if number:
                os.write(self._release, b".")
            assert await_byte(self._announced) == b"r"

    def await_signal(self) -> None:
        assert await_byte(self._announced) == b"s"

    def open(self) -> None:
        """Lets all further rounds pass."""
        os.write(self._release, b"." * 10_000)


class Shell:
    """The job control of a shell: reports that its job was suspended, and resumes it on request."""

    def __init__(self) -> None:
        self._suspended, self._announce = os.pipe()
        self._wait, self._resume = os.pipe()

    def run(self) -> None:
        """Forks the job, in the child; returns in the job only."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            return
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                os._exit(os.waitstatus_to_exitcode(status) % 256)
            os.tcsetpgrp(0, os.getpid())
            os.write(self._announce, b"z")
            wait_for_byte(self._wait)
            os.tcsetpgrp(0, job)
            os.kill(job, signal.SIGCONT)

    def await_stop(self) -> None:
        assert await_byte(self._suspended) == b"z"

    def resume(self) -> None:
        os.write(self._resume, b".")


class Terminal:
    """A chat on a pseudo terminal of 24 x 80.

    Args:
        arguments: Of `specgen chat`.
        state: State folder.
        prepare: Called in the child first.
        log: File for the prompt ids and reply ids, one JSON line per reply.
        shell: Runs the chat as its job, so that the chat can be suspended and resumed.
        env: Additional environment variables.
        command: A command other than `chat`.
        fresh: Start a new interpreter instead of a forked child; `prepare` and `shell` are for forked ones.
    """

    def __init__(
        self,
        *arguments: str,
        state: Path,
        prepare: Callable[[], None] | None = None,
        log: Path | None = None,
        shell: Shell | None = None,
        env: Mapping[str, str] | None = None,
        command: str = "chat",
        fresh: bool = False,
    ) -> None:
        environment = {**ENVIRONMENT, "SPECGEN_STATE": str(state), **(env or {})}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            if fresh:
                os.environ.update(environment)
                os.execv(sys.executable, [sys.executable, "-m", __name__, str(log or ""), command, *arguments])
            if shell is not None:
                shell.run()
            _child([command, *arguments], environment, prepare, log)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.fd)
        self.screen = pexpect.fdpexpect.fdspawn(self.fd, timeout=20, encoding="utf-8")
        self.code: int | None = None

    def expect(self, text: str) -> str:
        """Waits for a text; returns the output before it."""
        self.screen.expect_exact(text)
        return ESCAPE.sub("", str(self.screen.before))

    def prompt(self) -> str:
        """Waits for the next prompt; returns the output before it."""
        return self.expect(PROMPT)

    def type(self, keys: str) -> None:
        self.screen.send(keys)

    def say(self, text: str) -> str:
        """Types a line and waits for the next prompt; returns the output between."""
        self.type(text + "\r")
        self.expect(ACCEPTED)
        return self.prompt()

    def ended(self) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        if self.code is None:
            with suppress(OSError, pexpect.EOF):
                self.screen.expect(pexpect.EOF)
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def all_shown(self) -> str:
        """Waits for the end; returns the output since the last wait."""
        self.ended()
        return ESCAPE.sub("", str(self.screen.before))

    def close(self) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        # pytest shows this after a failed test only.
        print(f"on the terminal, not yet read: {str(self.screen.buffer) + self._unread()!r}")
        with suppress(OSError):
            os.close(self.fd)

    def _unread(self) -> str:
        """Returns what the child wrote after the last wait, once the child has ended."""
        chunks = []
        with suppress(OSError):  # EIO: all is read
            while select.select([self.fd], [], [], 0)[0] and (chunk := os.read(self.fd, 1 << 16)):
                chunks.append(chunk)
        return b"".join(chunks).decode(errors="replace")


def _child(
    arguments: list[str], environment: Mapping[str, str], prepare: Callable[[], None] | None, log: Path | None
) -> None:
    code = 99
    try:
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        faulthandler.enable(sys.stderr)
        for name in DROPPED:
            os.environ.pop(name, None)
        os.environ.update(environment)
        if log is not None:
            _log_replies(log)
        if prepare is not None:
            prepare()
        from specgen.cli.app import run

        code = run(arguments)
        sys.stdout.flush()
    except BaseException:
        # Without this, the test only sees the end of the output, and not its cause.
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _log_replies(log: Path) -> None:
    from specgen.runtime.conversation import Conversation

    real = Conversation.end_reply

    def end_reply(self: Conversation, generation: Any) -> Any:
        with log.open("a") as file:
            file.write(json.dumps([list(generation.request.prompt_ids), generation.token_ids]) + "\n")
        return real(self, generation)

    Conversation.end_reply = end_reply  # type: ignore[method-assign]


def logged(log: Path) -> list[tuple[list[int], list[int]]]:
    return [(prompt, reply) for prompt, reply in map(json.loads, log.read_text().splitlines())]


if __name__ == "__main__":
    _child(sys.argv[2:], {}, None, Path(sys.argv[1]) if sys.argv[1] else None)
