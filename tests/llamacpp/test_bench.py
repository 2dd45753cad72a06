"""`specgen bench` of a GGUF on one backend, and on both in one table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from specgen.loading.builtin import FILE_NAME, GGUF_SHA256
from specgen.loading.names import BUILT_IN_NAME
from tests.cli.children import Ended, run_child
from tests.llamacpp.test_models import save_toy_gguf
from tests.toys import save_toy

SHORT = ("-n", "12", "-r", "2", "-w", "0", "--num-prompts", "2", "-k", "2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {"target": save_toy_gguf(root / "toy.gguf"), "wrong": save_toy_gguf(root / "wrong.gguf", fox=" quick")}


def bench(files: dict[str, Path], cache: Path, *arguments: str) -> Ended:
    env = {"SPECGEN_BACKEND": "auto", "SPECGEN_CACHE": str(cache), "SPECGEN_STATE": str(cache / "state")}
    return run_child("bench", "-t", str(files["target"]), *SHORT, *arguments, module="specgen", env=env)


def test_both_backends_are_in_one_table(files: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    document, rows = tmp_path / "out.json", tmp_path / "out.csv"
    drafts = ("-d", "lookup", "-d", str(files["wrong"]))
    exports = (f"--export-json={document}", f"--export-csv={rows}")

    ended = bench(files, cache, "--backend", "both", "--threads", "1", *drafts, *exports)

    assert ended.code == 0, ended.err
    lines = ended.out.decode().splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("backend"))
    assert [line.split()[0] for line in lines[head + 1 : head + 7]] == [*["llama.cpp"] * 3, *["torch"] * 3]
    assert sum(line.startswith("target toy ") for line in lines) == 2
    assert any(line.startswith("costs on llama.cpp") for line in lines)
    assert max(map(len, lines)) <= 120
    found: Any = json.loads(document.read_text())
    assert [(row["backend"], row["drafter"], row["summary"]["text"]) for row in found["results"]] == [
        (backend, drafter, None if drafter == "none" else "same")
        for backend in ("llama.cpp", "torch")
        for drafter in ("none", "lookup", "model")
    ]
    assert found["results"][3]["summary"]["speedup"] > 0
    assert "llama.cpp, 1 thread" in found["target"]["remark"]
    assert found["other_target"]["quant"] == "none"
    assert all(len(row["runs"]) == 4 for row in found["results"])
    assert len({tuple(run["token_ids"]) for row in found["results"] for run in row["runs"]}) == 1
    assert list(found["costs"]["draft_token_s"]) == ["lookup", "wrong F32"]
    backends = [row["engine"] for row in csv.DictReader(io.StringIO(rows.read_text()))]
    # The key of 0.1.0 keeps the value of 0.1.0.
    assert (backends.count("llama.cpp"), backends.count("transformers")) == (12, 12)


def test_a_single_backend_has_no_column(files: dict[str, Path], cache: Path) -> None:
    ended = bench(files, cache, "--threads", "2", "--format", "json")

    assert ended.code == 0, ended.err
    found: Any = json.loads(ended.out)
    assert "llama.cpp, 2 threads" in found["target"]["remark"]
    assert found["other_target"] is None
    assert [row["engine"] for row in found["results"]] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "is_noted"),
    [(("--backend", "llama.cpp"), True), (("--backend", "llama.cpp", "-d", "lookup"), False), ((), False)],
)
def test_it_says_that_the_built_in_draft_head_is_left_out(
    cache: Path, arguments: tuple[str, ...], is_noted: bool
) -> None:
    """A toy is in the place of the built-in model, and runs on torch by default."""
    built_in = cache / "gguf" / GGUF_SHA256[:16] / FILE_NAME
    built_in.parent.mkdir(parents=True)
    save_toy_gguf(built_in)

    ended = bench({"target": Path(BUILT_IN_NAME)}, cache, *arguments)

    assert ended.code == 0, ended.err
    noted = [line for line in ended.err.splitlines() if BUILT_IN_NAME in line and "--backend torch" in line]
    assert len(noted) == int(is_noted)


def test_llama_cpp_alone_writes_the_text_of_the_same_file(files: dict[str, Path], cache: Path) -> None:
    peers = ("--peer", "llama-cpp", "--peer", f"llama-cpp={files['wrong']}")

    ended = bench(files, cache, "--threads", "1", "-d", "lookup", *peers, "--format", "json")

    assert ended.code == 0, ended.err
    found: Any = json.loads(ended.out)
    own, other = found["results"][2:]
    assert [(row["drafter"], row["draft"], row["k"]) for row in (own, other)] == [("peer", "llama-cpp F32", "-")] * 2
    assert [row["summary"]["text"] for row in (own, other)] == ["same", None]
    assert all(len(run["token_ids"]) == 12 for row in (own, other) for run in row["runs"])
    assert len(own["runs"]) == len(other["runs"]) == 4
    assert own["runs"][0]["token_ids"] != other["runs"][0]["token_ids"]


def test_both_backends_need_a_gguf(files: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    ended = bench({"target": save_toy(tmp_path / "folder")}, cache, "--backend", "both")

    assert (ended.code, ended.out) == (2, b"")
    assert "--backend llama.cpp" in ended.err
