"""Hybrids on the command line: doctor plans their snapshots, verify says how their recurrences round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import EXACT, Cli
from tests.hybrids import save_hybrid


# In float32: FalconH1 has 80 channels of 4 inputs and 4 heads of 16 x 8; Lfm2 has 2 layers of 32 channels of 3 inputs.
@pytest.mark.parametrize(
    ("kind", "rollback", "snapshot_bytes"),
    [("FalconH1", "snapshot_and_replay", 4 * (80 * 4 + 4 * 16 * 8)), ("Lfm2", "crop", 4 * 2 * 32 * 3)],
)
@pytest.mark.fast("Lfm2*")
def test_doctor_shows_the_rollback_and_the_memory_of_snapshots(
    cli: Cli, tmp_path: Path, kind: str, rollback: str, snapshot_bytes: int
) -> None:
    arguments = ("doctor", "-t", save_hybrid(kind, tmp_path), "-d", "none", *EXACT)
    text, document = cli(*arguments), json.loads(cli(*arguments, "--json").out)
    memory = document["pair"]["models"][0]["memory"]

    assert memory["rollback"] == {"kind": rollback, "num_snapshots": 5, "snapshot_bytes": snapshot_bytes}
    parts = memory["weights"] + memory["cache"] + memory["activations"]
    assert document["pair"]["devices"][0]["needed"] == parts + 5 * snapshot_bytes
    lines = [line for line in text.out.decode().splitlines() if line.startswith("rollback")]
    assert len(lines) == 1
    assert "5 snapshots" in lines[0]


@pytest.mark.thorough
def test_the_cache_is_planned_for_layers_with_attention_only(cli: Cli, tmp_path: Path) -> None:
    arguments = ("doctor", "-t", save_hybrid("Lfm2", tmp_path), "-d", "none", *EXACT, "--json")
    memory = json.loads(cli(*arguments).out)["pair"]["models"][0]["memory"]

    # One of three layers.
    config = json.loads((tmp_path / "config.json").read_text())
    head_size = config["hidden_size"] // config["num_attention_heads"]
    per_position = 2 * config["num_key_value_heads"] * head_size * 4
    assert memory["cache"] == 512 * per_position + memory["rollback"]["snapshot_bytes"]


def test_a_model_without_running_states_is_cropped_without_a_word(cli: Cli, toys: dict[str, Path]) -> None:
    arguments = ("doctor", "-t", toys["target"], "-d", "none", *EXACT)
    memory = json.loads(cli(*arguments, "--json").out)["pair"]["models"][0]["memory"]

    assert memory["rollback"] == {"kind": "crop", "num_snapshots": 0, "snapshot_bytes": 0}
    assert b"rollback" not in cli(*arguments).out


def test_kernels_that_need_a_gpu_leave_the_rollback_unknown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("0 active drivers")

    monkeypatch.setattr("specgen.doctor.model_sizes.state_sizes", fail)
    arguments = ("doctor", "-t", save_hybrid("FalconH1", tmp_path), "-d", "none", *EXACT)

    memory = json.loads(cli(*arguments, "--json").out)["pair"]["models"][0]["memory"]
    assert memory["rollback"]["kind"] == "unknown"
    assert b"rollback" in cli(*arguments).out


def test_doctor_refuses_a_hybrid_that_cannot_run(cli: Cli, tmp_path: Path) -> None:
    arguments = ("doctor", "-t", save_hybrid("Jamba", tmp_path), "-d", "none", *EXACT, "--json")
    ended = cli(*arguments)
    error = json.loads(ended.out)["error"]

    assert ended.code == error["exit_code"] != 0
    assert "JambaMambaMixer" in error["message"]
    assert "Falcon-H1" in error["hint"]


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "is_recurrent"), [("FalconH1", True), ("Lfm2", False)])
def test_verify_says_how_recurrent_rules_round(cli: Cli, tmp_path: Path, kind: str, is_recurrent: bool) -> None:
    arguments = ("verify", "-t", save_hybrid(kind, tmp_path), "-d", "lookup", "-p", "hello", "-n", "8", *EXACT)
    text, document = cli(*arguments), json.loads(cli(*arguments, "--json").out)
    check = document["batch_invariance"]

    assert text.code == 0
    assert check["is_invariant"]
    assert (check["recurrent_difference"] is not None) == is_recurrent
    if is_recurrent:
        assert 0 < check["recurrent_difference"] < 1e-4
    assert (b"recurrent layers" in text.out) == is_recurrent
