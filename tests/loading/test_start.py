"""A start imports only the libraries that the models need: neither transformers nor bitsandbytes for most of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specgen.core.errors import ModelNotFoundError
from specgen.loading.builtin import fetch_builtin
from specgen.loading.gguf.convert import convert_gguf
from tests.loading.builders import edit_json, make_folder, make_gguf, make_tokenizer
from tests.processes.environment import ROOT, environment

CHILD = """
import json, sys
from specgen.cli.app import main

results = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["specgen", *words]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    loaded = [name for name in ("torch", "transformers", "bitsandbytes", "gguf") if name in sys.modules]
    results.append([code, loaded])
print("\\n" + json.dumps(results))
"""


def imported_by(*runs: list[str], **env: str) -> list[list[str]]:
    """Runs the command line several times in a new process, and returns the heavy libraries imported after each."""
    command = [sys.executable, "-c", CHILD, json.dumps([["generate", *words, "-n", "1", "hi"] for words in runs])]
    done = subprocess.run(command, capture_output=True, env=environment(**env), cwd=ROOT, timeout=200, check=True)
    results: list[Any] = json.loads(done.stdout.decode().splitlines()[-1])
    assert [code for code, _ in results] == [0] * len(runs), done.stderr.decode()
    return [names for _, names in results]


def qwen(folder: Path) -> Path:
    """Writes a model like Qwen2.5."""
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_most_models_start_without_transformers_and_bitsandbytes(
    tmp_path: Path, cache: Path, state: Path, folder: Path
) -> None:
    plain = ["--chat-template", "none"]
    file = make_gguf(tmp_path / "tiny.gguf")
    convert_gguf(file)
    other = make_folder(tmp_path / "other")
    edit_json(other / "config.json", new_key=3)

    found = imported_by(
        ["-t", str(qwen(tmp_path / "qwen")), *plain],
        ["-t", str(folder), "-d", str(folder), *plain],
        ["-t", str(file), *plain],
        ["-t", str(other), *plain],
        SPECGEN_CACHE=str(cache),
        SPECGEN_STATE=str(state),
    )

    assert found[:3] == [["torch"]] * 3
    assert "transformers" in found[3], "the test would notice it"


@pytest.mark.real
def test_the_built_in_pair_starts_without_transformers_and_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    monkeypatch.delenv("SPECGEN_CACHE")
    try:
        folder = fetch_builtin(offline=True)
    except ModelNotFoundError as error:
        pytest.skip(str(error))

    found = imported_by([], SPECGEN_CACHE=str(folder.parent.parent), SPECGEN_STATE=str(state))

    assert found == [["torch"]]
