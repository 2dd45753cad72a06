"""The printed command lines on the real engines, and a batch that is killed and continued on one of them.

Each engine is in an environment of its own: SPECGEN_TEST_VLLM is its Python, SPECGEN_TEST_LLAMA_SERVER the program.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from specgen.core.errors import ServerError
from specgen.servers.http import HttpOptions
from specgen.servers.launch.engines import launch_command
from specgen.servers.launch.values import LaunchRequest, Placement, Speculation
from specgen.servers.server import Server, open_server
from specgen.servers.values import Address, ChatRequest
from tests.processes.environment import environment

VLLM, LLAMA_SERVER = os.environ.get("SPECGEN_TEST_VLLM"), os.environ.get("SPECGEN_TEST_LLAMA_SERVER")
MODEL = Path(os.environ.get("SPECGEN_DEV_MODELS", "~/.cache/specgen-dev")).expanduser() / "smollm2-135m-instruct.gguf"
PARSER = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
for line in sys.stdin:
    arguments = parser.parse_args(json.loads(line))
    validate_parsed_serve_args(arguments)
    print("PARSED", json.dumps(vars(arguments), default=str))
"""
PROMPT = "Say it three times: the quick brown fox, the quick brown fox,"
PAIRS = {
    "model": Speculation(str(MODEL), False, 3),
    "lookup": Speculation(None, True, 4),
    "model+lookup": Speculation(str(MODEL), True, 3),
}
needs_llama_server = [
    pytest.mark.server,
    pytest.mark.skipif(LLAMA_SERVER is None or not MODEL.exists(), reason="needs llama-server and SmolLM2 as GGUF"),
]


@pytest.mark.server
@pytest.mark.skipif(VLLM is None, reason="needs vLLM")
def test_vllms_own_parser_reads_what_was_meant() -> None:
    assert VLLM is not None
    model, lookup = Speculation("acme/tiny", False, 3), Speculation(None, True, 4)
    requests = [
        LaunchRequest("acme/big", model, Placement(8)),
        LaunchRequest("acme/big", lookup, Placement(8, 2, 8001)),
        LaunchRequest("acme/big", None),
    ]
    words = [launch_command("vllm", request).words for request in requests]
    typed = "".join(json.dumps(one[1:]) + "\n" for one in words)

    ended = subprocess.run([VLLM, "-c", PARSER], input=typed, capture_output=True, text=True, timeout=240)

    first, second, baseline = (
        json.loads(line.removeprefix("PARSED")) for line in ended.stdout.splitlines() if line.startswith("PARSED")
    )
    assert {one["model_tag"] for one in (first, second, baseline)} == {"acme/big"}
    assert first["speculative_config"] == {"method": "draft_model", "model": "acme/tiny", "num_speculative_tokens": 3}
    assert (first["tensor_parallel_size"], first["per_request_spec_decode_metrics"]) == (8, "detailed")
    assert (second["tensor_parallel_size"], second["nnodes"], second["node_rank"], second["port"]) == (16, 2, 0, 8001)
    assert second["speculative_config"]["method"] == "ngram"
    assert (baseline["speculative_config"], baseline["port"]) == (None, 8000)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(request: LaunchRequest) -> Iterator[Server]:
    """Runs the printed line in a shell, and connects to the server."""
    assert LLAMA_SERVER is not None
    line = launch_command("llama-server", request).line.replace("llama-server", f"exec {shlex.quote(LLAMA_SERVER)}", 1)
    process = subprocess.Popen(["sh", "-c", line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield connected(f"http://127.0.0.1:{request.placement.port}", process)
    finally:
        process.kill()
        process.wait()


def connected(url: str, process: subprocess.Popen[bytes]) -> Server:
    while True:
        assert process.poll() is None, "llama-server refused its command line"
        try:
            return open_server(Address(url), "", HttpOptions(timeout_seconds=240, num_retries=0))
        except ServerError:
            time.sleep(0.2)


class TestOnLlamaServer:
    pytestmark: Sequence[pytest.MarkDecorator] = needs_llama_server

    @pytest.mark.parametrize("kind", PAIRS)
    def test_a_server_starts_as_printed_and_drafts(self, kind: str) -> None:
        with started(LaunchRequest(str(MODEL), PAIRS[kind], Placement(port=free_port()))) as server:
            asked = ChatRequest([{"role": "user", "content": PROMPT}], 24, {"temperature": 0.0})
            _, figures = server.complete(server.body(asked, stream=False))

        assert figures.num_tokens is not None
        assert figures.acceptance is not None
        if kind != "lookup":  # whether text repeats is the model's choice
            assert figures.acceptance.num_drafted > 0

    @pytest.mark.timeout(900)
    def test_a_batch_that_is_killed_at_half_ends_with_every_id_once(self, tmp_path: Path) -> None:
        file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        file.write_text("".join(json.dumps({"custom_id": str(i), "body": body}) + "\n" for i in range(200)))
        with started(LaunchRequest(str(MODEL), None, Placement(port=free_port()))) as server:
            words = ["batch", str(file), "-o", str(out), "--server", server.client.address.url, "--concurrency", "8"]
            call = [sys.executable, "-m", "specgen", *words]
            first = subprocess.Popen(call, stderr=subprocess.DEVNULL, env=environment())
            while not out.exists() or out.read_bytes().count(b"\n") < 100:
                assert first.poll() is None
                time.sleep(0.02)
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert out.read_bytes().count(b"\n") < 200
            second = subprocess.run(call, stderr=subprocess.DEVNULL, env=environment())

        assert second.returncode == 0
        found = Counter(json.loads(line)["custom_id"] for line in out.read_text().splitlines())
        assert found == {str(i): 1 for i in range(200)}
