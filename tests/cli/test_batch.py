"""`specgen batch` on a toy: one line for each request, resumed after a stop, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.runtime.batch.output_file import OutputFile
from tests.cli.conftest import Cli
from tests.runtime.servers.fake import LLAMA_PAGES, Reply, as_json, serving

WORDS = ("hello", "fox", "quick brown", "at the caf", "lat")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "prompt": word}) + "\n" for i, word in enumerate(WORDS)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def batch(cli: Cli, toy_arguments: list[str], prompts: Path, out: Path) -> Callable[..., Any]:
    return lambda *words: cli("batch", prompts, "-o", out, *toy_arguments, "-n", 12, "--temperature", 0, *words)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def texts(out: Path) -> dict[str, str]:
    return {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in lines(out)}


def test_every_answer_is_that_of_generate(
    batch: Callable[..., Any], cli: Cli, toy_arguments: list[str], out: Path
) -> None:
    ended = batch("-d", "lookup")

    assert (ended.code, ended.out) == (0, b""), ended.err
    alone = [cli("generate", word, *toy_arguments, "-n", 12, "--temperature", 0, "-d", "none") for word in WORDS]
    assert texts(out) == {str(i): one.out.decode().removesuffix("\n") for i, one in enumerate(alone)}


def test_figures_of_an_answer_are_in_its_line(batch: Callable[..., Any], out: Path) -> None:
    batch("-d", "lookup", "-k", 3)

    body = lines(out)[0]["response"]["body"]
    assert body["usage"]["completion_tokens"] == body["specgen"]["tokens"] > 0
    assert len(body["choices"][0]["token_ids"]) == body["usage"]["completion_tokens"]
    stats = body["specgen"]["stats"]
    assert 0 <= stats["num_accepted_draft_tokens"] <= stats["num_draft_tokens"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_continues_with_what_is_left(
    batch: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    append = OutputFile.append

    def append_and_stop(self: OutputFile, line: str) -> None:
        append(self, line)
        if len(lines(out)) == 2:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "append", append_and_stop)
        assert batch().code == 128 + signum
    assert len(lines(out)) == 2
    ended = batch("--json")

    assert ended.code == 0
    document = json.loads(ended.out)
    assert (document["skipped"], document["answered"], document["is_complete"]) == (2, 3, True)
    assert [one["custom_id"] for one in lines(out)] == ["0", "1", "2", "3", "4"]


def test_a_finished_batch_loads_no_model(batch: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch()
    before = out.read_bytes()
    monkeypatch.setattr("specgen.cli.batch.inputs.LocalInputs.open", None)

    assert batch().code == 0
    assert out.read_bytes() == before


def test_a_request_that_fails_leaves_the_others(
    batch: Callable[..., Any], toys: dict[str, Path], prompts: Path, out: Path
) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps({"id": "long", "prompt": "fox " * 100}) + "\n" + '{"id": "last", "prompt": "fox"}\n')

    ended = batch("--target", toys["64"], "--json")

    document = json.loads(ended.out)
    assert (ended.code, document["error"]["code"]) == (11, "batch")
    assert (document["answered"], document["failed"]) == (6, 1)
    (failed,) = [one for one in lines(out) if one["error"]]
    assert (failed["custom_id"], failed["response"], failed["error"]["code"]) == ("long", None, "prompt")
    assert lines(out)[-1]["custom_id"] == "last"
    assert batch("--target", toys["64"]).code == 11, "the output still has an error"
    assert batch("--target", toys["64"], "--retry-failed", "-n", 2).code == 11
    assert len(lines(out)) == 7


def test_the_replies_to_earlier_turns_are_part_of_the_conversation(
    batch: Callable[..., Any], prompts: Path, out: Path
) -> None:
    prompts.write_text('{"id": "a", "turns": ["hello", "fox"]}\n')

    assert batch().code == 0
    (line,) = lines(out)
    first = line["response"]["body"]["specgen"]["earlier_replies"][0]
    messages = [("user", "hello"), ("assistant", first), ("user", "fox")]
    body = {"messages": [{"role": role, "content": content} for role, content in messages]}
    prompts.write_text(json.dumps({"custom_id": "b", "body": body}) + "\n")
    assert batch().code == 0
    assert texts(out)["a"] == texts(out)["b"]


def test_a_field_that_only_a_server_honours_is_refused_before_loading(
    batch: Callable[..., Any], prompts: Path, out: Path
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [{}]}
    prompts.write_text(json.dumps({"custom_id": "b", "body": body}) + "\n")

    assert batch().code == 2
    assert not out.exists()


@pytest.mark.parametrize("content", ["", "{", '{"custom_id": "a"}'])
def test_a_file_without_prompts_ends_with_2(batch: Callable[..., Any], prompts: Path, content: str) -> None:
    prompts.write_text(content)

    ended = batch("--json")

    assert (ended.code, json.loads(ended.out)["code"]) == (2, "prompt")


def test_the_input_is_never_the_output(batch: Callable[..., Any], prompts: Path) -> None:
    assert batch("-o", prompts).code == 2


def test_a_full_disk_ends_the_run_with_7(batch: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def write_or_fail(descriptor: int, data: Any) -> int:
        if bytes(data[:6]) == b'{"id":' and b'"custom_id":"1"' in bytes(data):
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_or_fail)

    assert batch().code == 7
    assert [one["custom_id"] for one in lines(out)] == ["0"]


# On a server


def echo(request: dict[str, Any]) -> Reply:
    message = {"role": "assistant", "content": request["messages"][-1]["content"]}
    return as_json(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 4},
            "timings": {"predicted_n": 4, "predicted_ms": 100, "draft_n": 3, "draft_n_accepted": 1},
        }
    )


def test_a_server_answers_a_batch_and_continues_it(cli: Cli, prompts: Path, out: Path) -> None:
    with serving(LLAMA_PAGES, echo) as fake:
        words = ["batch", prompts, "-o", out, "--server", fake.url, "--concurrency", 3, "-n", 9, "--json"]
        first = cli(*words)
        out.write_bytes(out.read_bytes()[:-5])  # the last line is torn
        second = cli(*words)

    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert texts(out) == {str(i): word for i, word in enumerate(WORDS)}
    assert len(lines(out)) == 5
    assert len(fake.requests) == 6
    assert {sent["max_tokens"] for sent in fake.requests} == {9}
    document = json.loads(first.out)
    assert (document["tokens"], document["num_draft_tokens"]) == (20, 15)
    assert lines(out)[0]["response"]["body"]["specgen"]["stats"]["draft_acceptance_rate"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "words", [["-d", "lookup"], ["-k", 3], ["--quant", "none"], ["--backend", "torch"], ["--chat-template", "none"]]
)
def test_what_a_server_decided_when_it_started_is_refused(
    cli: Cli, prompts: Path, out: Path, words: list[object]
) -> None:
    ended = cli("batch", prompts, "-o", out, "--server", "http://127.0.0.1:9", *words)

    assert ended.code == 2
    assert not out.exists()


def test_a_server_that_is_not_there_ends_with_10(cli: Cli, prompts: Path, out: Path) -> None:
    ended = cli("batch", prompts, "-o", out, "--server", "http://127.0.0.1:9", "--json")

    assert (ended.code, json.loads(ended.out)["code"]) == (10, "server_unreachable")


def test_a_key_is_in_no_output(cli: Cli, prompts: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_API_KEY", "sk-secret")
    refused = as_json({"error": {"message": "wrong key sk-secret"}}, 401)

    with serving(LLAMA_PAGES, refused) as fake:
        ended = cli("batch", prompts, "-o", out, "--server", fake.url, "--json", "-vv")

    assert ended.code == 10
    assert fake.headers[-1]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in ended.out.decode() + ended.err + out.read_text()


def test_variables_of_the_environment_for_local_models_do_not_hinder_a_server(
    cli: Cli, prompts: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECGEN_DRAFT", "lookup")

    with serving(LLAMA_PAGES, echo) as fake:
        monkeypatch.setenv("SPECGEN_SERVER", fake.url)
        assert cli("batch", prompts, "-o", out).code == 0
