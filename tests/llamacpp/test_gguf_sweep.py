"""Files with one odd entry: both backends refuse them with their own error, or write what llama.cpp writes.

llama.cpp runs alone in a child (`tests.llamacpp.raw_llama`): it ends the process for some files.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.children import Ended
from tests.llamacpp.families import ARCHITECTURES, EDGED, edges, family, valid_files
from tests.llamacpp.variants import F32, Model, scalar, variants
from tests.processes.environment import environment
from tests.processes.forked import ForkedProcess, Pipes

PROMPT, NUM_TOKENS, SECONDS = "ABCDE", "12", 30
VARIANTS = dict(variants())
QUICK = (
    *("base", "llama.block_count=2^31", "llama.block_count=0", "llama.attention.layer_norm_rms_epsilon=nan"),
    *("llama.rope.freq_base=string", "llama.rope.scaling.type=dynamic", "llama.expert_count=3", "aligned 8"),
    *("llama.attention.head_count_kv=differing", "llama.attention.head_count_kv=per-layer", "type 28 F64"),
    *("tokenizer.ggml.tokens:twice", "tokenizer.ggml.model=llama", "tokenizer.ggml.eos_token_id=64"),
    *("tokenizer.ggml.cls_token_id=-2", "end-by-text <end_of_turn> type 1 plain", "general.name=not-utf8"),
)
SHOWN_OTHERWISE = ("tokenizer.ggml.tokens:", "tokenizer.ggml.token_type:", "tokenizer.ggml.token_type=")
"""llama.cpp writes other characters for tokens that are malformed, and none for tokens without a known type."""
ROPE = ("llama.rope.scaling.", "llama.rope.scale_linear", "llama.rope.freq_base=tiny", "tokenizer.ggml.pre")


REFUSED = {
    ("gemma3", "yarn scaling"): "transformers and llama.cpp read YaRN's parameters of Gemma 3 differently",
    **{("starcoder2", f"{name} per layer"): "transformers' conversion reads no arrays" for name in ("heads", "widths")},
    **{("starcoder2", f"{name} scaling"): "transformers' conversion drops it" for name in ("linear", "yarn")},
}
"""Valid files that torch does not run, and why."""


def run(module: str, *arguments: str, **env: str) -> Ended:
    pipes = Pipes(None)
    variables = environment(GGML_NO_BACKTRACE="1", **env)
    process = ForkedProcess("tests.llamacpp.limited", [module, *arguments], variables, pipes.descriptors)
    pipes.started()
    try:
        code = process.wait(SECONDS)
    finally:
        process.kill()  # one that hangs; does nothing if it has ended
    out, err = pipes.result()
    return Ended(code, out, err.decode("utf-8", "replace"))


def check(model: Model, name: str, folder: Path, cache: Path, *, must_run: bool = False) -> None:
    path = folder / "odd.gguf"
    path.write_bytes(model.file())
    expected: dict[str, Any] | None = None
    with suppress(subprocess.TimeoutExpired):  # llama.cpp itself hangs
        alone = run("tests.llamacpp.raw_llama", str(path), PROMPT, NUM_TOKENS)
        expected = json.loads(alone.out) if alone.code == 0 else None
    assert expected is not None or not must_run, "llama.cpp refuses the file"
    for backend, dtype in (("llama.cpp", "auto"), ("torch", "float32")):
        options = ["-t", str(path), "-d", "none", "--backend", backend, "--dtype", dtype, "--chat-template", "none"]
        made = run(
            *("specgen.cli.app", "generate", *options, "-n", NUM_TOKENS, "--json", PROMPT), SPECGEN_CACHE=str(cache)
        )
        document = json.loads(made.out)
        assert made.code in ((0,) if must_run else (0, 2, 3, 4, 5, 8)), (backend, made.err)
        if made.code == 0 and expected is not None and not name.startswith((*SHOWN_OTHERWISE, *ROPE)):
            has_ended = document["finish_reason"] != "length"
            assert (document["text"], has_ended) == (expected["text"], expected["ended"]), backend
            assert document["usage"]["prompt_tokens"] == expected["num_prompt"], backend


def failures(
    files: Iterable[tuple[str, Model]], folder: Path, cache: Path, *, must_run: bool = False
) -> list[tuple[str, str]]:
    """Checks files; returns the names of those that fail, and why."""
    failed = []
    for name, model in files:
        try:
            check(model, name, folder, cache, must_run=must_run)
        except (AssertionError, ValueError, subprocess.TimeoutExpired) as error:
            failed.append((name, str(error)[:500]))
    return failed


@pytest.mark.fault("F157")
@pytest.mark.parametrize("name", QUICK)
def test_an_odd_file_is_refused_or_runs_as_in_llama_cpp(name: str, tmp_path: Path, cache: Path) -> None:
    check(VARIANTS[name], name, tmp_path, cache)


def _groups() -> Sequence[str]:
    return sorted({_group_of(name) for name in VARIANTS})


def _group_of(name: str) -> str:
    return name.partition("=")[0].partition(":")[0]


@pytest.mark.slow
@pytest.mark.fault("F157")
@pytest.mark.parametrize("group", _groups(), ids=lambda group: group[:40])
def test_every_entry_at_its_edges_is_refused_or_runs_as_in_llama_cpp(group: str, tmp_path: Path, cache: Path) -> None:
    assert failures(((name, VARIANTS[name]) for name in VARIANTS if _group_of(name) == group), tmp_path, cache) == []


@pytest.mark.slow
@pytest.mark.fault("F157")
@pytest.mark.parametrize("architecture", EDGED)
def test_every_entry_of_an_architecture_at_its_edges(architecture: str, tmp_path: Path, cache: Path) -> None:
    assert failures(edges(architecture), tmp_path, cache) == []


@pytest.mark.fault("F157")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_of_each_architecture_runs_as_in_llama_cpp(architecture: str, tmp_path: Path, cache: Path) -> None:
    base = scalar(F32, 500.0)  # not the default of the architecture
    model = family(architecture).with_pair(f"{architecture}.rope.freq_base", base)

    check(model, "plain", tmp_path, cache, must_run=True)


@pytest.mark.slow
@pytest.mark.fault("F157")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_valid_file_is_refused(architecture: str, tmp_path: Path, cache: Path) -> None:
    files = [(name, model) for name, model in valid_files(architecture) if (architecture, name) not in REFUSED]
    refused = [(name, model) for name, model in valid_files(architecture) if (architecture, name) in REFUSED]
    assert failures(files, tmp_path, cache, must_run=True) + failures(refused, tmp_path, cache) == []
