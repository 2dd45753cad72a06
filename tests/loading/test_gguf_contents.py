"""Entries, tensors and values of GGUF files equal those that the gguf package reads, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.contents import read_contents
from specgen.loading.gguf.float_values import float_values
from specgen.loading.safetensors_writer import SafetensorsWriter
from tests.cli.children import ROOT
from tests.loading import test_gguf_unpack
from tests.loading.builders import array, fails, make_gguf, pair, text
from tests.loading.builders import gguf as gguf_of
from tests.loading.test_gguf_unpack import TYPES, write

NUM_TOKENS = 20_000
WIDTH, NUM_LAYERS = 2048, 4
CHILD = """
import sys
from pathlib import Path
from specgen.loading.gguf.unpack import unpack
from tests.loading.peak import peak_bytes, return_freed_memory

return_freed_memory()
unpack(Path(sys.argv[1]), Path(sys.argv[3]))  # what the libraries take when they run first
before = peak_bytes()
unpack(Path(sys.argv[2]), Path(sys.argv[3]))
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("kinds", [TYPES, ("Q8_0",)])
def test_entries_and_tensors_equal_those_of_the_gguf_package(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    def edit(writer: Any, _: Any) -> None:
        writer.add_custom_alignment(64)
        writer.add_array("llama.numbers", [1.5, 2.5])
        writer.add_bool("llama.flag", True)
        writer.add_array("llama.words", ["A", "Ä"])

    path = write(tmp_path / "tiny.gguf", "llama", types=kinds, edit=edit, num_layers=1)
    reader = gguf.GGUFReader(path)

    found = read_contents(path)

    expected = {key: entry.contents() for key, entry in reader.fields.items() if key.startswith("llama.")}
    assert {key: value for key, value in found.entries.items() if key.startswith("llama.")} == expected
    assert found.entries["general.architecture"] == "llama"
    assert found.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        own = found.tensors[tensor.name]
        assert (own.begin, own.num_values) == (tensor.data_offset, tensor.n_elements)
        assert np.array_equal(float_values(path, own).numpy(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_the_vocabulary_is_not_kept(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", tokens=[f"word {index}" for index in range(NUM_TOKENS)])
    tracemalloc.start()
    try:
        read_contents(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 20 * NUM_TOKENS  # an object alone takes more


@pytest.mark.parametrize("lost", [1, 5, 12])
def test_a_list_that_was_cut_after_the_check_is_refused(tmp_path: Path, lost: int) -> None:
    whole = gguf_of([pair("tokenizer.ggml.merges", 9, array(8, 2, text("a b") + text("c d")))], alignment=1)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole[:-lost])

    fails(ModelFileError, lambda: read_contents(path), str(path), "truncated")


def test_a_tensor_that_was_cut_after_the_check_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama", types=("F32",), num_layers=1)
    last = max(read_contents(path).tensors.values(), key=lambda tensor: tensor.begin)
    os.truncate(path, last.begin + 4)

    fails(ModelFileError, lambda: float_values(path, last), str(path), "truncated")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parts_written_in_any_order_make_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix, vector = torch.randn(6, 5).to(dtype), torch.randn(3).to(dtype)
    path = tmp_path / "model.safetensors"

    with SafetensorsWriter(path, {"matrix": (6, 5), "vector": (3,)}, dtype) as writer:
        writer.write("vector", 0, vector)
        writer.write("matrix", 20, matrix.flatten()[20:])
        writer.write("matrix", 0, matrix.flatten()[:20])

    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {"matrix", "vector"}
        assert torch.equal(file.get_tensor("matrix"), matrix)
        assert torch.equal(file.get_tensor("vector"), vector)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")
def test_unpacking_takes_less_than_half_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    write(small, "llama", types=("Q8_0",))
    monkeypatch.setattr(test_gguf_unpack, "HIDDEN", WIDTH)
    monkeypatch.setattr(test_gguf_unpack, "INNER", WIDTH)
    write(large, "llama", types=("Q8_0",), num_layers=NUM_LAYERS)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(small), str(large), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}

    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)

    weight_bytes = 2 * NUM_LAYERS * 3 * WIDTH**2
    assert (tmp_path / "model.safetensors").stat().st_size > weight_bytes
    assert json.loads(done.stdout) < weight_bytes / 2
