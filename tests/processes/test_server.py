"""The fork server ends its children when the run of the tests ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.client import READY, send_request
from tests.processes.environment import ROOT, environment

WITHOUT_LIBRARIES = "import sys; from tests.processes.server import ForkServer; ForkServer(sys.argv[1]).serve()"
ENDLESS = ["-n", "1", "-r", "1", "-s", "import time", "time.sleep(1000)"]
"""Arguments of the module `timeit`."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a server that has imported no libraries, which is ready at once."""
    words = [sys.executable, "-c", WITHOUT_LIBRARIES, str(tmp_path / "socket")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == READY
        yield started


@pytest.mark.parametrize("is_session", [False, True])
def test_no_child_outlives_the_run(server: subprocess.Popen[bytes], tmp_path: Path, is_session: bool) -> None:
    assert server.stdin is not None
    terminal, slave = os.openpty()
    request = {"module": "timeit", "arguments": ENDLESS, "environment": environment(), "folder": str(ROOT)}
    streams = dict.fromkeys((0, 1, 2), slave)
    with send_request(str(tmp_path / "socket"), streams, is_session=is_session, **request) as connection:
        answer = connection.makefile("rb", buffering=0)
        pid = int(answer.readline())

        server.stdin.close()  # as when the process of the tests is killed

        assert server.wait(10) == 0
        assert answer.readline() == b""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for descriptor in (terminal, slave):
        os.close(descriptor)
