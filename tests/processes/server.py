"""Fork server: a process that has imported torch, transformers and specgen, and forks once per request.

    python -m tests.processes.server SOCKET

A new interpreter needs 2 to 5 s to import the libraries, a fork 10 ms. A client connects to SOCKET and sends one
`Request` with its file descriptors; it receives the process id at once and the exit status at the end, a line each. The
server ends when its stdin is closed, and kills the children that still run.

The server never uses a thread or an OpenMP region, because neither survives a fork.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import socket
import struct
import sys
import termios
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import specgen
from specgen.loading.libraries import prepare_libraries
from tests.processes.client import LENGTH, READY

MODULES = {"specgen": "specgen.cli.app"}
"""Module of `python -m` -> where its `main` is, if it is not there itself."""
MODELS = ("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2")
"""The architectures of the tests' models."""
MAX_DESCRIPTORS = 16
LOWEST_SPARE = 300
"""Received descriptors are moved to here first, so that none is overwritten by another one's final number."""


@dataclass(frozen=True)
class Request:
    """What a child runs, and with what.

    Attributes:
        module: As for `python -m`.
        arguments: Of the command line.
        environment: All of it.
        descriptors: The child's number of each descriptor sent along. Of 0, 1 and 2, those not named are closed.
        folder: Working directory.
        ignored_signals: Signals that the child ignores from its start.
        is_session: The child leads a session, whose terminal is its stdin.
    """

    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    descriptors: tuple[int, ...]
    folder: str
    ignored_signals: tuple[int, ...] = ()
    is_session: bool = False


def receive_request(connection: socket.socket) -> tuple[Request, list[int]]:
    """Reads a request, and the descriptors that came with its first bytes."""
    descriptors = array.array("i")
    prefix, ancillary, _, _ = connection.recvmsg(
        LENGTH.size, socket.CMSG_SPACE(MAX_DESCRIPTORS * descriptors.itemsize), socket.MSG_WAITALL
    )
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    (length,) = LENGTH.unpack(prefix)
    with connection.makefile("rb") as stream:
        return Request(**json.loads(stream.read(length))), list(descriptors)


class ForkServer:
    """Accepts requests until its own stdin is closed. No child outlives it."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._connections: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Forks for each request and reports each end."""
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for file in (0, wake_reader, self._listener):
            self._selector.register(file, selectors.EVENT_READ)
        os.write(1, READY)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    self._end_children()
                    return
                if key.fileobj == wake_reader:
                    os.read(wake_reader, 1 << 10)
                    self._report_ends()
                else:
                    self._start_child()

    def _start_child(self) -> None:
        connection, _ = self._listener.accept()
        with suppress(OSError, struct.error):  # a client that is gone
            request, descriptors = receive_request(connection)
            with suppress(Exception):  # the child raises it again
                importlib.import_module(request.module)
            pid = os.fork()
            if pid == 0:
                for one in (self._listener, connection, *self._connections.values()):
                    one.close()
                run_child(request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            self._connections[pid] = connection
            connection.sendall(b"%d\n" % pid)

    def _end_children(self) -> None:
        for pid in self._connections:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _report_ends(self) -> None:
        while self._connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self._connections.pop(pid) as connection, suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def run_child(request: Request, descriptors: list[int]) -> NoReturn:
    """Becomes, as far as a program can see, a new interpreter that runs the request's module."""
    code = 99
    try:
        signal.set_wakeup_fd(-1)
        _set_signals(request.ignored_signals)
        _place_descriptors(descriptors, request.descriptors)
        if request.is_session:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        _open_standard_streams(request.environment)
        sys.argv = [request.module, *request.arguments]
        code = _exit_code_of(MODULES.get(request.module, request.module))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _set_signals(ignored: tuple[int, ...]) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def _place_descriptors(received: list[int], targets: tuple[int, ...]) -> None:
    spares = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LOWEST_SPARE) for descriptor in received]
    for descriptor in {0, 1, 2, *received}:
        with suppress(OSError):
            os.close(descriptor)
    for spare, target in zip(spares, targets, strict=True):
        os.dup2(spare, target)
        os.close(spare)


def _open_standard_streams(environment: dict[str, str]) -> None:
    """Opens stdin, stdout and stderr as an interpreter does at its start (`init_sys_streams` in CPython)."""
    name, _, errors = environment.get("PYTHONIOENCODING", "").partition(":")
    is_unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    is_c_locale = environment.get("LC_ALL") in ("C", "POSIX")
    encoding = name or ("ascii" if is_c_locale and environment.get("PYTHONUTF8") == "0" else "utf-8")
    lenient = errors or ("surrogateescape" if is_c_locale else "strict")
    defaults = {"stdin": ("r", lenient), "stdout": ("w", lenient), "stderr": ("w", "backslashreplace")}
    for descriptor, (stream, (mode, default)) in enumerate(defaults.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            opened: Any = None
        else:
            is_raw = is_unbuffered and mode == "w"
            binary = open(descriptor, f"{mode}b", 0 if is_raw else -1, closefd=False)  # noqa: SIM115
            opened = io.TextIOWrapper(
                binary,
                encoding,
                default,
                newline="\n" if mode == "w" else None,
                line_buffering=stream == "stderr" or os.isatty(descriptor),
                write_through=is_raw,
            )
        setattr(sys, stream, opened)
        setattr(sys, f"__{stream}__", opened)


def _exit_code_of(module: str) -> int:
    """Runs the module's `main` and everything that an interpreter does after it."""
    try:
        importlib.import_module(module).main()
        code = 0
    except SystemExit as ended:
        code = _code_of_exit(ended.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    except Exception:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return 120
    return code % 256


def _code_of_exit(value: object) -> int:
    if isinstance(value, str):
        print(value, file=sys.stderr)
        return 1
    return int(value) if isinstance(value, int) else 0


def import_libraries() -> None:
    """Imports what children need, as the program itself does."""
    prepare_libraries(verbose=False)
    import torch

    torch.set_num_threads(1)
    ours = (module.name for module in pkgutil.walk_packages(specgen.__path__, "specgen."))
    for name in (*(name for name in ours if not name.endswith("__main__")), *MODELS):
        importlib.import_module(name)
    # No child collects the libraries' objects: that would take a second and copy them all.
    gc.collect()
    gc.freeze()
    gc.unfreeze = gc.get_freeze_count = lambda: 0  # type: ignore[assignment]
    atexit._clear()  # of the libraries: they touch 40 MB


if __name__ == "__main__":
    import_libraries()
    ForkServer(sys.argv[1]).serve()
    os._exit(0)  # the libraries' handlers of an exit are gone, and some of their finalizers need them
