"""Failures of llama.cpp: damaged files, full contexts, return codes, output."""

from __future__ import annotations

import gc
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import DeviceError, MemoryShortageError, ModelFileError, PromptError
from specgen.core.settings import BackendSettings, ModelSettings, PairSettings
from specgen.loading.gguf.header import scan_gguf
from specgen.models.llama_cpp import LlamaCppModel
from specgen.runtime.pair import resolve_pair
from tests.fakes import tiny_model
from tests.llamacpp.builders import LLAMA_CPP, letters, load, tiny_weights, write_gguf
from tests.loading.builders import fails


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return write_gguf(folder / "whole.gguf", tiny_model(), letters(96))


class Library:
    """The real library with some functions replaced; counts calls of all."""

    def __init__(self, real: Any, **replaced: Callable[..., Any]) -> None:
        self._real = real
        self._replaced = replaced
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = self._replaced.get(name) or getattr(self._real, name)
        if name.startswith("llama_") and callable(found) and not isinstance(found, type):
            self.calls.append(name)
        return found


class Weights:
    """Loaded weights with another library."""

    def __init__(self, real: Any, **replaced: Callable[..., Any]) -> None:
        self.real = real
        self.library = Library(real.library, **replaced)
        self.pointer = real.pointer
        self.num_embeddings = real.num_embeddings

    def last_message(self) -> str:
        return "planted"


# files


def test_the_info_describes_what_runs(path: Path) -> None:
    info = load(path).info

    assert (info.quant, info.device, info.num_parameters) == ("F32", "cpu", scan_gguf(path).num_parameters)
    assert info.remark == "llama.cpp, 1 thread"


@pytest.mark.fault("F93")
@pytest.mark.parametrize("kind", [4, 5])
@pytest.mark.fast("5")
def test_a_special_token_that_is_none_is_as_if_its_key_were_missing(path: Path, folder: Path, kind: int) -> None:
    data, key = path.read_bytes(), b"tokenizer.ggml.eos_token_id"
    at = data.index(key) + len(key)
    changed = folder / f"none-{kind}.gguf"
    changed.write_bytes(data[:at] + struct.pack("<II", kind, 2**32 - 1) + data[at + 8 :])

    tables = [
        [weights.token_text(token) for token in range(96)] for weights in (load(changed).weights, load(path).weights)
    ]
    assert tables[0] == tables[1]


def test_a_file_without_a_tensor_is_refused_with_llama_cpps_reason(
    folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A handler that another test's library left behind may hold a stream that is closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    broken = write_gguf(folder / "hole.gguf", tiny_model(), letters(96), skip="blk.1.ffn_up.weight")

    fails(ModelFileError, lambda: load(broken), "hole.gguf", "blk.1.ffn_up.weight", "another GGUF")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["cut", "magic", "empty", "tensor-count"])
@pytest.mark.fast("cut")
def test_a_damaged_file_is_refused_before_llama_cpp_sees_it(
    damage: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError("llama.cpp was asked")

    monkeypatch.setattr("specgen.loading.llama_cpp.llama_library", never)
    data = path.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    changed = {"cut": data[: len(data) - 5000], "magic": b"GGML" + data[4:], "empty": b""}
    damaged.write_bytes(changed.get(damage, data[:8] + b"\xff" * 4 + data[12:]))

    settings = ModelSettings(str(damaged), backend=BackendSettings("llama.cpp"))
    fails(ModelFileError, lambda: resolve_pair(PairSettings(settings)), "damaged.gguf")


def test_nothing_but_the_answer_reaches_stdout_and_stderr(path: Path) -> None:
    code = f"""
from pathlib import Path
from specgen.core.errors import SpecgenError
from specgen.models.llama_cpp import LlamaCppModel
from tests.llamacpp.builders import load
weights = load(Path({str(path)!r})).weights
model = LlamaCppModel(weights, 96, 64, 1)
model.logits([1, 2, 3], 2)
model.rewind(1)
for ids in ([1] * 65, [1, 9999]):
    try:
        model.logits(ids, 1)
    except (SpecgenError, IndexError):
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)

    assert (done.stdout, done.stderr, done.returncode) == ("refused\nrefused\n", "", 0)


# passes


def test_a_text_longer_than_the_context_is_refused_and_the_cache_is_kept(folder: Path) -> None:
    model = LlamaCppModel(tiny_weights(folder), 96, 256, 1)
    model.feed([1] * 250)

    fails(PromptError, lambda: model.logits([1] * 257, 1), "257", "256", "--context-size")
    assert model.length == 250
    assert model.logits([1] * 256, 1).shape == (1, 96)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (1, PromptError, "--context-size"),
        (-2, MemoryShortageError, "out of memory"),
        (-3, DeviceError, "code -3: planted"),
        (2, DeviceError, "code 2"),
        (-1, DeviceError, "code -1"),
    ],
)
def test_return_codes_of_llama_decode_become_errors(folder: Path, status: int, kind: type[Any], words: str) -> None:
    answers = iter([0, status])
    real = tiny_weights(folder)

    def decode(context: Any, batch: Any) -> int:
        planned = next(answers, 0)
        return planned or int(real.library.llama_decode(context, batch))

    model = LlamaCppModel(Weights(real, llama_decode=decode), 96, 64, 1)
    model.feed([1, 2, 3])

    fails(kind, lambda: model.logits([1, 2, 3, 4], 1), words)
    assert model.length == 0
    fresh = LlamaCppModel(real, 96, 64, 1).logits([5, 6], 1)
    assert torch.allclose(model.logits([5, 6], 1), fresh, atol=1e-6)


def test_a_failing_context_is_a_memory_shortage(folder: Path) -> None:
    weights = Weights(tiny_weights(folder), llama_init_from_model=lambda pointer, params: None)

    fails(MemoryShortageError, lambda: LlamaCppModel(weights, 96, 64, 1), "64", "planted")


def test_a_cache_that_can_not_be_truncated_is_cleared(folder: Path) -> None:
    real = tiny_weights(folder)
    model = LlamaCppModel(Weights(real, llama_memory_seq_rm=lambda *arguments: False), 96, 64, 1)
    model.feed([1, 2, 3, 4])

    model.rewind(2)

    assert model.length == 0
    fresh = LlamaCppModel(real, 96, 64, 1).logits([1, 2, 9], 1)
    assert torch.allclose(model.logits([1, 2, 9], 1), fresh, atol=1e-6)


def test_a_rewind_without_effect_is_noticed(folder: Path) -> None:
    """Plants a bug: rejected tokens stay in the cache."""
    real = tiny_weights(folder)
    model = LlamaCppModel(Weights(real, llama_memory_seq_rm=lambda *arguments: True), 96, 64, 1)
    model.feed([1, 2, 3, 4])
    model.rewind(2)

    with pytest.raises(DeviceError):
        model.logits([1, 2, 9], 1)


def test_context_and_weights_are_freed_once_and_in_order(path: Path) -> None:
    freed: list[str] = []
    weights = load(path).weights
    model = LlamaCppModel(
        Weights(weights, llama_free=lambda context: freed.append("context"), llama_batch_free=lambda batch: None),
        96,
        64,
        1,
    )
    model.feed([1, 2])

    del model
    gc.collect()

    assert freed == ["context"]


def test_the_default_settings_are_those_of_llama_cpp() -> None:
    assert LLAMA_CPP.backend.name == "llama.cpp"
