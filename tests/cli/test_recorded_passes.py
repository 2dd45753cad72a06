"""The whole program on recorded passes, with a CUDA graph's semantics on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specgen.loading import weights
from tests.cli.conftest import Cli
from tests.models.static.recorder import TraceRecorder


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[TraceRecorder]:
    """Makes every loaded model record its passes; lists the recorders."""
    made: list[TraceRecorder] = []

    record_all(monkeypatch, made)
    return made


def record_all(monkeypatch: pytest.MonkeyPatch, made: list[TraceRecorder]) -> None:
    """Records the passes of models that are loaded from now on; one that is not admitted is an internal error."""
    original = weights.recorded

    def recorder_for(device: object) -> TraceRecorder:
        made.append(TraceRecorder())
        return made[-1]

    def admitted(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        assert found.reason is None, found.reason
        return found

    monkeypatch.setattr(weights, "recorder_for", recorder_for)
    monkeypatch.setattr(weights, "recorded", admitted)


def document(cli: Cli, *arguments: object) -> dict[str, object]:
    ended = cli("generate", "--json", "-n", "48", *arguments, "one two three one two")
    assert ended.code == 0, ended.err
    made: dict[str, object] = json.loads(ended.out)
    return made


@pytest.mark.parametrize(
    "options",
    [
        ("-k", "4"),
        ("-k", "auto"),
        ("-k", "4", "--temperature", "0.8", "--same-text"),
        ("-k", "3", "--repetition-penalty", "1.2"),
    ],
    ids=["fixed", "auto", "same-text", "penalty"],
)
@pytest.mark.fast("auto")
def test_generate_writes_the_same_text_as_on_plain_passes(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = document(cli, *toy_arguments, "-d", toys["wrong"], *options)
    made: list[TraceRecorder] = []
    record_all(monkeypatch, made)

    static = document(cli, *toy_arguments, "-d", toys["wrong"], *options)

    assert static["text"] == plain["text"]
    assert len(made) == 2
    assert all(recorder.traces for recorder in made)


@pytest.mark.thorough
@pytest.mark.usefixtures("checked_sampler")
@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_verify_passes_on_recorded_passes(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], recorders: list[TraceRecorder], backend: str
) -> None:
    ended = cli("verify", "-p", "hello", *toy_arguments, "--backend", backend, "-d", toys["wrong"])

    assert ended.code == 0, ended.out
    assert "recorded" not in ended.err
    assert len(recorders) == 2
    assert all(recorder.traces for recorder in recorders)


@pytest.mark.thorough
def test_bench_measures_and_checks_recorded_passes(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], recorders: list[TraceRecorder]
) -> None:
    ended = cli(
        "bench",
        *toy_arguments,
        "-d",
        toys["wrong"],
        "-k",
        "2,auto",
        "-n",
        "16",
        "-r",
        "1",
        "--num-prompts",
        "1",
        "--check",
        "--format",
        "json",
    )

    assert ended.code == 0, ended.err
    assert recorders
    assert {run["summary"]["text"] for run in json.loads(ended.out)["results"] if run["summary"]["text"]} == {"same"}
