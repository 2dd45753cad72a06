"""`specgen export`: one line on stdout, remarks on stderr, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from specgen.render.bench.documents import bench_document
from tests.bench.reports import report
from tests.cli.conftest import Cli

PAIR = ["-t", "acme/big", "-d", "acme/tiny", "-k", 3]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(bench_document(report())))
    return path


def test_stdout_is_the_command_alone(cli: Cli) -> None:
    ended = cli("export", "vllm", *PAIR, "--gpus", 4)

    assert ended.code == 0
    (line,) = ended.out.decode().splitlines()
    words = shlex.split(line)
    assert words[:5] == ["vllm", "serve", "acme/big", "--tensor-parallel-size", "4"]
    assert "0.32.0" in ended.err


def test_quiet_omits_the_remarks(cli: Cli) -> None:
    assert cli("export", "vllm", *PAIR, "-q").err == ""


def test_json_is_one_document_with_words_and_remarks(cli: Cli) -> None:
    line = cli("export", "sglang", *PAIR, "-q").out.decode().strip()

    document = json.loads(cli("export", "sglang", *PAIR, "--json").out)

    assert document["type"] == "export"
    assert shlex.join(document["argv"]) == document["command"] == line
    assert document["remarks"]


def test_a_benchmark_chooses_the_pair(cli: Cli, results: Path) -> None:
    ended = cli("export", "vllm", "--from", results, "-t", "acme/big")

    assert ended.code == 0, ended.err
    assert '"model":"Qwen/0.5B","num_speculative_tokens":4' in ended.out.decode()


def test_a_local_target_of_a_benchmark_needs_its_place(cli: Cli, results: Path) -> None:
    assert cli("export", "vllm", "--from", results).code == 2


def test_local_models_are_given_with_their_whole_path(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.gguf").touch()

    ended = cli("export", "llama-server", "-t", "t.gguf", "--baseline")

    assert str(tmp_path / "t.gguf") in shlex.split(ended.out.decode())


def test_a_draft_of_specgens_own_format_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"specgen_draft": {}}')

    ended = cli("export", "vllm", "-t", "acme/big", "-d", tmp_path, "-k", 3)

    assert (ended.code, ended.out) == (2, b"")
    assert str(tmp_path) in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ["banana", *PAIR],
        ["vllm"],
        ["vllm", "-t", "acme/big"],
        ["vllm", "-t", "acme/big", "-d", "acme/tiny"],
        ["vllm", *PAIR[:4], "-k", "auto"],
        ["vllm", *PAIR[:4], "-k", 65],
        ["vllm", "-t", "acme/big", "-d", "auto", "-k", 3],
        ["vllm", "-t", "", "--baseline"],
        ["vllm", "-t", "smollm2-135m-instruct", "--baseline"],
        ["vllm", "--target=--trust-remote-code", "--baseline"],
        ["vllm", "--from", "missing.json"],
        ["llama-server", *PAIR],
        ["vllm", *PAIR, "--gpus", 0],
    ],
)
def test_what_cant_be_launched_ends_with_2_and_an_empty_stdout(cli: Cli, words: list[object]) -> None:
    ended = cli("export", *words)

    assert (ended.code, ended.out) == (2, b"")
    assert ended.err.startswith("error: ")


def test_results_and_a_draft_exclude_each_other(cli: Cli, results: Path) -> None:
    ended = cli("export", "vllm", "--from", results, *PAIR, "--json")

    assert ended.code == 2
    assert json.loads(ended.out)["code"] == "settings"
