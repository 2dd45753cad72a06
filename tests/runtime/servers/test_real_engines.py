"""Real engines, started with the printed command lines: what specgen shows of them is what they count themselves.

`real.py` here says where the engines are. What a run of all of them found is in `specgen/runtime/servers/__init__.py`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from specgen.core.settings import ReplySettings, SamplingSettings
from specgen.runtime.servers.conversation import ServedConversation
from specgen.runtime.servers.launch.command import launch_command
from specgen.runtime.servers.launch.values import LaunchRequest, ServerPlacement, Speculation
from specgen.runtime.servers.server import Server
from tests.processes.environment import environment
from tests.runtime.servers.real import (
    LLAMA_SERVER,
    RPC_SERVER,
    VLLM,
    XLLAMACPP,
    Program,
    answered,
    free_port,
    running,
    started,
)

pytestmark: Sequence[pytest.MarkDecorator] = [pytest.mark.server, pytest.mark.timeout(1800)]
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


def program_params(*programs: Program) -> list[object]:
    """Returns the programs as parameters, which are skipped if they are not on this machine."""
    return [
        pytest.param(one, id=one.name, marks=pytest.mark.skipif(not one.is_here, reason=f"needs {one.name}"))
        for one in programs
    ]


def drafts_of(program: Program) -> dict[str, Speculation]:
    """Returns three pairs; the target drafts for itself."""
    return {
        "model": Speculation(str(program.target), False, 3),
        "lookup": Speculation(None, True, 4),
        "model+lookup": Speculation(str(program.target), True, 3),
    }


@pytest.mark.skipif(not VLLM.is_here, reason="needs vllm")
def test_vllms_own_parser_reads_what_was_meant() -> None:
    model, lookup = Speculation("acme/tiny", False, 3), Speculation(None, True, 4)
    requests = [
        LaunchRequest("acme/big", model, ServerPlacement(8)),
        LaunchRequest("acme/big", lookup, ServerPlacement(8, 2, 8001)),
        LaunchRequest("acme/big", None),
    ]
    words = [launch_command("vllm", request).words for request in requests]
    typed = "".join(json.dumps(one[1:]) + "\n" for one in words)

    ended = subprocess.run([VLLM.words[0], "-c", PARSER], input=typed, capture_output=True, text=True, timeout=240)

    first, second, baseline = (
        json.loads(line.removeprefix("PARSED")) for line in ended.stdout.splitlines() if line.startswith("PARSED")
    )
    assert {one["model_tag"] for one in (first, second, baseline)} == {"acme/big"}
    assert first["speculative_config"] == {"method": "draft_model", "model": "acme/tiny", "num_speculative_tokens": 3}
    assert (first["tensor_parallel_size"], first["per_request_spec_decode_metrics"]) == (8, "detailed")
    assert (second["tensor_parallel_size"], second["nnodes"], second["node_rank"], second["port"]) == (16, 2, 0, 8001)
    assert second["speculative_config"]["method"] == "ngram"
    assert (baseline["speculative_config"], baseline["port"]) == (None, 8000)
    assert baseline["enable_per_request_metrics"] is True


@pytest.mark.parametrize("kind", ["model", "lookup", "model+lookup"])
@pytest.mark.parametrize("program", program_params(LLAMA_SERVER, XLLAMACPP, VLLM))
def test_a_server_starts_as_printed_and_drafts(program: Program, kind: str) -> None:
    if program is VLLM and kind != "lookup":
        pytest.skip("the class below starts it with a draft model, also for model+lookup")
    with started(program, drafts_of(program)[kind]) as server:
        _, counts = answered(server)

    if kind != "lookup":  # whether text repeats is the model's choice
        assert counts.num_drafted > 0


@pytest.mark.parametrize("program", program_params(LLAMA_SERVER, XLLAMACPP))
def test_a_command_line_that_the_engine_does_not_know_is_refused(program: Program) -> None:
    with running([*program.words, "--model", str(program.target), "--draft-max", "3"]) as process:
        assert process.wait(60) != 0


@pytest.fixture(scope="class")
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    program: Program = request.param
    with ExitStack() as entered:
        own = entered.enter_context(started(program, drafts_of(program)["model"]))
        yield own, entered.enter_context(started(program, None))


@pytest.mark.parametrize("servers", program_params(LLAMA_SERVER, XLLAMACPP, VLLM), indirect=True, scope="class")
class TestWithABaseline:
    """A server with a draft model, and the same engine without."""

    def test_counts_are_the_growth_of_the_servers_counters_and_text_is_that_without_drafts(
        self, servers: tuple[Server, Server]
    ) -> None:
        (text, counts), (own, plain) = map(answered, servers)

        assert (counts.num_drafted > 0, plain.num_drafted) == (True, 0)
        assert text == own
        assert counts.block_efficiency == pytest.approx(1 + counts.num_accepted / counts.num_rounds)
        assert counts.alpha is not None

    def test_a_chat_of_three_turns_is_that_without_drafts(self, servers: tuple[Server, Server]) -> None:
        settings = ReplySettings(SamplingSettings(), "default", 16)
        chats = [ServedConversation(server, settings) for server in servers]
        for text in ("Count to five.", "And backwards?", "Thank you."):
            for chat in chats:
                chat.say(text)
                reply = chat.begin_reply()
                for _ in chat.stream(reply):
                    pass
                assert chat.end_reply(reply) is not None

        drafted, plain = chats
        assert [one.content for one in drafted.messages] == [one.content for one in plain.messages]
        assert len(drafted.messages) == 6
        assert (drafted.totals.num_drafted > 0, plain.totals.num_drafted) == (True, 0)

    def test_bench_measures_the_speedup_and_the_servers_counters_agree(self, servers: tuple[Server, Server]) -> None:
        own, baseline = (server.client.address.url for server in servers)
        options = ["--num-prompts", "2", "-r", "2", "-n", "12", "--concurrency", "1,2", "--format", "json"]
        call = [sys.executable, "-m", "specgen", "bench", "--server", own, "--baseline-server", baseline, *options]
        ended = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), check=True)

        found = json.loads(ended.stdout)
        measured = [one for one in found["results"] if one["draft"]]
        assert [one["concurrency"] for one in measured] == [1, 2]
        for one in measured:
            summary = one["summary"]
            assert summary["speedup_interval_95"][0] <= summary["speedup"] <= summary["speedup_interval_95"][1]
            assert summary["text"] in ("same", "near-tie")
            assert summary["stats"]["num_draft_tokens"] > 0
        doubts = {one["code"] for one in found["warnings"]}
        # Of a server that served others, the counters would not be compared.
        assert not {"counters_differ", "not_alone", "different_models", "merged_chunks", "retried"} & doubts

    def test_doctor_finds_drafts_on_and_off(self, servers: tuple[Server, Server]) -> None:
        for server, is_on in zip(servers, (True, False), strict=True):
            call = [sys.executable, "-m", "specgen", "doctor", "--server", server.client.address.url, "--json"]
            ended = subprocess.run(call, stdout=subprocess.PIPE, env=environment(), check=True)

            assert bool(json.loads(ended.stdout)["stats"]["num_draft_tokens"]) == is_on


@pytest.mark.skipif(not LLAMA_SERVER.is_here or RPC_SERVER is None, reason="needs llama-server and ggml-rpc-server")
def test_a_target_on_two_other_processes_writes_the_same_text() -> None:
    """The machines of `--nodes` are processes here."""
    assert RPC_SERVER is not None
    with started(LLAMA_SERVER, None) as server:
        own, _ = answered(server)
    ports = [free_port(), free_port()]
    with ExitStack() as entered:
        nodes = [entered.enter_context(running([RPC_SERVER, "-H", "127.0.0.1", "-p", str(port)])) for port in ports]
        time.sleep(2)
        before = [memory_of(node.pid) for node in nodes]
        with started(LLAMA_SERVER, None, nodes=[f"127.0.0.1:{port}" for port in ports]) as server:
            text, _ = answered(server)
            grown = [memory_of(node.pid) - earlier for node, earlier in zip(nodes, before, strict=True)]

    assert text == own
    # Each has half of the layers, which are 50 MB of the file, and of the cache.
    assert min(grown) > 20_000_000, grown


def memory_of(pid: int) -> int:
    """Returns the resident bytes of a process and its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = re.search(r"VmRSS:\s+(\d+) kB", status)
    return (int(own[1]) * 1024 if own else 0) + sum(memory_of(int(child)) for child in children)


@pytest.mark.parametrize("program", program_params(LLAMA_SERVER))
def test_a_batch_that_is_killed_at_half_ends_with_every_id_once(program: Program, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    file.write_text("".join(json.dumps({"custom_id": str(i), "body": body}) + "\n" for i in range(200)))
    with started(program, None) as server:
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
