"""Starts real engines with the command lines that `specgen export` prints.

Each engine is in an environment of its own: SPECGEN_TEST_VLLM is its Python, SPECGEN_TEST_LLAMA_SERVER and
SPECGEN_TEST_RPC_SERVER are llama.cpp's programs, and SPECGEN_TEST_XLLAMACPP is the Python of xllamacpp.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from specgen.core.errors import ServerError
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo, RunInfo
from specgen.core.settings import SamplingSettings
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.http import HttpOptions
from specgen.runtime.servers.launch import EngineName
from specgen.runtime.servers.launch.command import launch_command
from specgen.runtime.servers.launch.values import LaunchRequest, ServerPlacement, Speculation
from specgen.runtime.servers.server import Server, open_server
from specgen.runtime.servers.values import Address, ChatRequest
from tests.real_models import FOLDER

PROMPT = "Say it three times: the quick brown fox, the quick brown fox,"


@dataclass(frozen=True)
class Program:
    """A real engine.

    Args:
        name: For the ids of tests.
        engine: Whose command line it takes.
        words: What stands for the first word of that line; empty if it is not installed.
        target: The model of the tests, which drafts for itself.
        environment: Variables that it needs on a machine like this.
    """

    name: str
    engine: EngineName
    words: Sequence[str]
    target: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether the program and the model are on this machine."""
        return bool(self.words) and self.target.exists()


def _words(variable: str, *more: str) -> list[str]:
    first = os.environ.get(variable)
    return [] if first is None else [first, *more]


GGUF, SAFETENSORS = FOLDER / "smollm2-135m-instruct.gguf", FOLDER / "smollm2-135m-instruct"
VLLM_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
LLAMA_SERVER = Program("llama-server", "llama-server", _words("SPECGEN_TEST_LLAMA_SERVER"), GGUF)
XLLAMACPP = Program(
    "xllamacpp",
    "llama-server",
    _words("SPECGEN_TEST_XLLAMACPP", str(Path(__file__).with_name("xllamacpp_server.py"))),
    GGUF,
)
VLLM = Program(
    "vllm", "vllm", _words("SPECGEN_TEST_VLLM", "-m", "vllm.entrypoints.cli.main"), SAFETENSORS, VLLM_VARIABLES
)
RPC_SERVER = os.environ.get("SPECGEN_TEST_RPC_SERVER")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(words: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program until the end of the block."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    variables |= environment or {}
    # Its compiler, ninja, is next to its Python.
    variables["PATH"] = f"{Path(words[0]).parent}{os.pathsep}{variables['PATH']}"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["sh", "-c", f"exec {shlex.join(words)}"], env=variables, **quiet)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def started(
    program: Program, speculation: Speculation | None, *, nodes: Sequence[str] = (), seconds: float = 600
) -> Iterator[Server]:
    """Runs the printed line, and connects to the server.

    Args:
        program: What reads it.
        speculation: What drafts; None for a baseline.
        nodes: HOST:PORT of the other machines.
        seconds: How long the start may take.
    """
    place = ServerPlacement(num_nodes=len(nodes) + 1, port=free_port())
    line = launch_command(program.engine, LaunchRequest(str(program.target), speculation, place)).line
    for number, node in enumerate(nodes, 1):
        line = line.replace(f"NODE{number}:50052", node)
    words = [*program.words, *shlex.split(line)[1:]]
    end = time.monotonic() + seconds
    with running(words, program.environment) as process:
        while True:
            assert process.poll() is None, f"{program.name} refused: {line}"
            try:
                address = Address(f"http://127.0.0.1:{place.port}")
                server = open_server(address, "", HttpOptions(timeout_seconds=240, num_retries=0))
                break
            except ServerError:
                assert time.monotonic() < end, f"{program.name} did not start in time: {line}"
                time.sleep(0.3)
        try:
            yield server
        finally:
            server.client.close()


def answered(server: Server, prompt: str = PROMPT, num_tokens: int = 24) -> tuple[str, Counts]:
    """Returns a greedy answer and its counts, once they are those of the server's counters."""
    info = RunInfo(ModelInfo("any", "", "", ""), None, "server", 0, SamplingSettings(), "default", num_tokens, 0.0)
    before = server.counters()
    request = ChatRequest([{"role": "user", "content": prompt}], num_tokens, {"temperature": 0})
    answer = ServedAnswer(server, request, info)
    for _ in answer:
        pass
    after = server.counters()
    if before is not None and after is not None:
        grown, counts = after.since(before), answer.counts
        assert grown is not None
        assert (grown.num_drafted, grown.num_accepted) == (counts.num_drafted, counts.num_accepted)
        assert grown.num_rounds == counts.num_rounds
        assert sum(grown.accepted_by_position) == counts.num_accepted
    return answer.text, answer.counts
