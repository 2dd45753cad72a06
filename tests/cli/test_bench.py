"""Tests `specgen bench` on toys whose answers and costs are known: stdout, files and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specgen.core.draft_name import DraftName
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.runtime import generation
from specgen.runtime import pass_costs as probe
from tests.bench.virtual import VirtualClock, expected_rounds, plain_rule
from tests.cli.children import TOY, Child, Ended
from tests.cli.conftest import EXACT, Cli

SHORT = ["-n", "40", "-r", "2", "--num-prompts", "2"]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPECGEN_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """Replaces all clocks with virtual seconds. The first model loaded is the target."""
    made = VirtualClock()
    made.install(monkeypatch)
    monkeypatch.setattr(generation, "device_clock", lambda *_: made)
    monkeypatch.setattr(probe, "device_clock", lambda *_: made)
    first = DecoderModel.__init__

    def remember(model: DecoderModel, *arguments: Any) -> None:
        first(model, *arguments)
        made.target = made.target or model.module

    monkeypatch.setattr(DecoderModel, "__init__", remember)
    return made


@pytest.fixture
def bench(cli: Cli, toys: dict[str, Path], clock: VirtualClock) -> Cli:
    """Runs `specgen bench` on the toy with the draft that errs, on a virtual clock."""

    def call(*arguments: object) -> Ended:
        clock.target = None
        return cli("bench", "-t", toys["target"], "-d", toys["wrong"], *EXACT, *SHORT, *arguments)

    return call


def result(ended: Ended, index: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(ended.out)["results"][index]
    return made


@pytest.mark.thorough
def test_a_pipe_gets_only_the_table(bench: Cli) -> None:
    ended = bench("-k", "1,2")

    assert ended.code == 0
    lines = ended.out.decode().splitlines()
    assert lines[0].startswith("target target none float32 cpu")
    assert any(line.startswith("(target alone)") for line in lines)
    assert "-d " in lines[len(lines) - lines[::-1].index("")], "the last paragraph is the advice"
    assert max(map(len, lines)) <= 120


@pytest.mark.thorough
def test_one_command_gives_table_json_csv_markdown_and_plot(bench: Cli, tmp_path: Path) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "md", "svg")}
    exports = [f"--export-{name}={files[name]}" for name in ("json", "csv", "md")]

    ended = bench("-k", "2,auto", "-d", "lookup", *exports, "--plot", files["svg"])

    assert ended.code == 0
    document = json.loads(files["json"].read_text())
    assert [(r["draft"], r["k"]) for r in document["results"]] == [
        *((None, "0"), ("wrong float32", "2"), ("wrong float32", "auto"), ("wrong float32", "auto")),
        *(("lookup", "2"), ("lookup", "auto")),
    ]
    assert {len(r["runs"]) for r in document["results"]} == {4}
    assert document["environment"]["libraries"]["torch"]
    assert len(files["csv"].read_text().splitlines()) == 25
    assert "\n\n| draft" in files["md"].read_text()
    assert "</svg>" in files["svg"].read_text()


@pytest.mark.fault("F98")
@pytest.mark.thorough
def test_variables_of_the_template_are_in_the_document(bench: Cli) -> None:
    ended = bench("-k", "1", "--format", "json", "--chat-template-kwargs", '{"enable_thinking": false}')

    assert json.loads(ended.out)["config"]["chat_template_kwargs"] == {"enable_thinking": False}


def test_ndjson_has_a_line_per_run(bench: Cli) -> None:
    ended = bench("-k", "2", "-n", "8", "--format", "ndjson")

    kinds = [json.loads(line)["type"] for line in ended.out.splitlines()]
    assert kinds == ["start", *["run"] * 8, "bench"]


def test_a_crash_loses_the_run_in_progress_and_no_other(
    bench: Cli, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = CachedModel._forward, iter(range(10**6))

    def crashing(model: CachedModel, *arguments: Any) -> Any:
        kept = state / "bench" / "last.json"
        if kept.exists() and next(calls) == 60:
            raise SystemError("planted crash")
        return forward(model, *arguments)

    monkeypatch.setattr(CachedModel, "_forward", crashing)
    ended = bench("-k", "2")

    assert ended.code == 1
    document = json.loads((state / "bench" / "last.json").read_text())
    assert not document["is_complete"]
    # It happened after the first prompt and one run of the second.
    assert [len(item["runs"]) for item in document["results"]] == [1, 2]


@pytest.mark.fast("1.1")
@pytest.mark.parametrize("slowdown", [1.0, 1.1])
def test_a_planted_slowdown_of_ten_percent_fails_the_limit(bench: Cli, clock: VirtualClock, slowdown: float) -> None:
    # Passes over several tokens are what only the speculative path does.
    clock.rule = lambda c, is_target, n: plain_rule(c, is_target, n) * (slowdown if n > 1 else 1.0)
    honest = 40 / sum(1 + 0.3 * drafted for drafted, _ in expected_rounds(40, 5))

    ended = bench("-k", "5", "--format", "json", "--fail-under-speedup", f"{honest * 0.97:.4f}")

    if slowdown == 1.0:
        assert ended.code == 0, ended.err
        assert result(ended)["summary"]["speedup"] == pytest.approx(honest)
    else:
        assert ended.code == json.loads(ended.out)["error"]["exit_code"] == 9
        assert "--fail-under-speedup" in ended.err


@pytest.mark.thorough
def test_a_tar_below_the_limit_fails(bench: Cli) -> None:
    assert bench("-k", "2", "--fail-under-tar", "0.1").code == 0
    ended = bench("-k", "2", "--fail-under-tar", "0.99")

    assert ended.code == 9
    assert "--fail-under-tar 0.99" in ended.err


@pytest.mark.thorough
def test_check_passes_for_texts_that_are_the_targets_own(bench: Cli) -> None:
    ended = bench("-k", "3", "-d", "lookup", "--check", "--format", "json")

    assert ended.code == 0
    assert {result(ended, i)["summary"]["text"] for i in (1, 2)} == {"same"}


def test_check_catches_a_planted_bug_in_the_accept_rule(bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.engine import target_pass

    honest = target_pass.verify_greedy

    def credulous(top_logits: Any, top_ids: Any, draft: Any) -> list[int]:
        _, target_id, is_finite, *draft_ids = honest(top_logits, top_ids, draft)
        return [len(draft_ids), target_id, is_finite, *draft_ids]

    monkeypatch.setattr(target_pass, "verify_greedy", credulous)
    ended = bench("-k", "4", "--check")

    assert ended.code == 6
    assert "DIFFERENT@" in ended.out.decode()
    assert ["--check" in ended.err, "2 of 2" in ended.err] == [True, True]


def test_a_pipe_gets_one_document_at_the_end(bench: Cli, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)

    ended = bench("-k", "2", "-d", "lookup", f"--export-json={pipe}")

    assert ended.code == 0
    assert len(json.loads(reader.communicate(timeout=20)[0])["results"]) == 3


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        (["-k", "0"], "--draft-tokens", "0"),
        (["-k", "8-2"], "--draft-tokens", "8-2"),
        (["-k", "1,x"], "--draft-tokens", "x"),
        (["-k", "65"], "--draft-tokens", "65"),
        (["-n", "1"], "--max-new-tokens", "1"),
        (["-d", "none"], "--draft", "none"),
        (["--check", "--temperature", "1"], "--check", "--temperature"),
        (["--plot", "out.pdf"], ".pdf", "out.pdf"),
        (["--prompts", "/nowhere"], "prompts", "/nowhere"),
        (["--temperature", "-1"], "--temperature", "-1"),
        (["--peer", "llama"], "--peer", "llama"),
        (["--peer", "transformers=x.gguf"], "--peer", "transformers=x.gguf"),
        (["--peer", "transformers", "--temperature", "1"], "--peer", "--temperature"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_loaded(
    cli: Cli, arguments: list[str], option: str, value: str
) -> None:
    ended = cli("bench", "-t", "/no/model", *arguments)

    assert ended.code == 2
    assert option in ended.err
    assert value in ended.err
    assert ended.out == b""


def test_an_export_into_a_missing_folder_is_rejected_before_anything_is_loaded(cli: Cli) -> None:
    ended = cli("bench", "-t", "/no/model", "--export-json", "/nowhere/out.json")

    assert ended.code == 7
    assert "/nowhere" in ended.err


def test_an_error_before_the_first_run_becomes_the_json_document(cli: Cli) -> None:
    ended = cli("bench", "-t", "/no/model", "--format", "json")

    assert ended.code == json.loads(ended.out)["exit_code"] == 3


def test_lists_of_lengths_may_contain_ranges_and_steps() -> None:
    from specgen.cli.bench.inputs import parse_lengths

    assert parse_lengths("1,2,4,8") == ["1", "2", "4", "8"]
    assert parse_lengths("1-3,auto,2") == ["1", "2", "3", "auto"]
    assert parse_lengths("2-8+3") == ["2", "5", "8"]


def test_every_tree_is_measured_at_every_length() -> None:
    from specgen.bench.advice import command_line_for
    from specgen.cli.bench.benchmark import settings_of
    from specgen.cli.bench.inputs import parse_drafts, parse_trees

    drafts, trees = parse_drafts([DraftName("m")], "auto"), parse_trees("off, 4,auto,4", is_quick=False)

    assert [command_line_for(setting) for setting in settings_of(drafts, ["2", "auto"], trees)] == [
        *("-d m -k 2", "-d m -k 2 --tree 4", "-d m -k 2 --tree auto"),
        *("-d m -k auto", "-d m -k auto --tree 4", "-d m -k auto --tree auto"),
    ]


@pytest.mark.parametrize(
    ("tree", "length", "option"),
    [("off", "auto", " --tree off"), ("auto", "auto", " --tree auto"), ("4", "2", " --tree 4"), ("off", "2", "")],
)
def test_a_recommendation_names_trees_where_generate_might_decide_otherwise(
    tree: str, length: str, option: str
) -> None:
    from specgen.bench.advice import command_line_for
    from specgen.cli.bench.benchmark import settings_of
    from specgen.cli.bench.inputs import parse_drafts

    (setting,) = settings_of(parse_drafts([DraftName("m")], "auto"), [length], [tree])

    assert command_line_for(replace(setting, can_branch=True)) == f"-d m -k {length}{option}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("-k", "2,auto"), [("2", "off"), ("auto", "off"), ("auto", "auto")]),
        (("-k", "2,auto", "--tree", "off"), [("2", "off"), ("auto", "off")]),
        (("--quick",), [("4", "off"), ("auto", "auto")]),
        (("-k", "auto", "--temperature", "0.7"), [("auto", "off")]),
    ],
    ids=["default", "given", "quick", "sampled"],
)
def test_by_default_trees_are_measured_where_generate_drafts_them(
    bench: Cli, given: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    rows = json.loads(bench(*given, "--format", "json").out)["results"]

    assert [(row["k"], row["tree"]) for row in rows[1:]] == expected


@pytest.mark.thorough
def test_trees_are_rows_of_their_own(bench: Cli) -> None:
    ended = bench("-k", "2", "--tree", "off,4", "--format", "json")

    rows = json.loads(ended.out)["results"]
    assert [(row["k"], row["tree"]) for row in rows[1:]] == [("2", "off"), ("2", "4")]
    assert [{run["tree_nodes"] > 0 for run in row["runs"]} for row in rows[1:]] == [{False}, {True}]
    assert b"nodes" in bench("-k", "2", "--tree", "4").out


def test_a_draft_may_name_its_weight_format() -> None:
    from specgen.cli.bench.inputs import parse_drafts

    found = parse_drafts(list(map(DraftName, ("org/model", "org/model:nf4", "/a:b", "lookup", "lookup"))), "int8")

    assert [(draft.name.text, draft.quant) for draft in found] == [
        *(("org/model", "int8"), ("org/model", "nf4"), ("/a:b", "int8"), ("lookup", "auto")),
    ]


def test_a_draft_may_be_combined_with_lookup() -> None:
    from specgen.bench.advice import command_line_for
    from specgen.cli.bench.benchmark import settings_of
    from specgen.cli.bench.inputs import parse_drafts

    found = parse_drafts(list(map(DraftName, ("org/model:nf4+lookup", "m+lookup", "m", "lookup"))), "auto")

    assert [(draft.key, draft.name.kind) for draft in found] == [
        *(("org/model:nf4+lookup", "model+lookup"), ("m+lookup", "model+lookup")),
        *(("m", "model"), ("lookup", "lookup")),
    ]
    words = [command_line_for(setting) for setting in settings_of(found, ["auto"])]
    assert words[:2] == ["-d org/model+lookup --draft-quant nf4 -k auto", "-d m+lookup -k auto"]


@pytest.mark.thorough
def test_a_model_combined_with_lookup_is_measured_like_any_draft(bench: Cli, toys: dict[str, Path]) -> None:
    ended = bench("-k", "2", "-d", f"{toys['wrong']}+lookup", "--format", "json")

    rows = json.loads(ended.out)["results"]
    assert [row["draft"] for row in rows] == [None, "wrong float32", "wrong float32+lookup"]


@pytest.mark.thorough
def test_turns_are_answered_one_after_the_other(bench: Cli, tmp_path: Path) -> None:
    prompts = tmp_path / "turns.jsonl"
    prompts.write_text('{"question_id": 81, "category": "writing", "turns": ["one", "two"]}\n')

    ended = bench("-k", "2", "--prompts", prompts, "--format", "json")

    document = json.loads(ended.out)
    assert [prompt["id"] for prompt in document["prompts"]] == ["81", "81.2"]
    assert document["prompts"][1]["prompt_tokens"] > document["prompts"][0]["prompt_tokens"] + 20


def test_ctrl_c_prints_finished_runs_and_exits_with_130(toys: dict[str, Path], tmp_path: Path) -> None:
    words = ["bench", "-t", str(toys["target"]), *EXACT, "-n", "12", "-r", "3", "-w", "0", "-k", "2", "--num-prompts=2"]

    with Child(*words, place="forward 150", module=TOY, SPECGEN_STATE=str(tmp_path)) as child:
        child.wait_at_place()
        import signal

        child.send(signal.SIGINT)
        child.go_on()
        ended = child.finish()

    assert ended.code == 130
    assert "(target alone)" in ended.out.decode()
    assert "of 12 runs" in ended.err
