"""Tensors of safetensors files: read by name, equal to the library's, and compared with what a model needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specgen.core.errors import ModelFileError
from specgen.loading import tensor_files
from specgen.loading.tensor_files import TensorFiles
from specgen.models import weight_memory
from specgen.models.weight_memory import SHARED_BYTES, mapped_tensor
from tests.loading.builders import fails

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor([[1.0, -2.0]], dtype=torch.float16),
    "d": torch.zeros(0, 3),
}


@pytest.fixture
def files(tmp_path: Path) -> TensorFiles:
    save_file({name: TENSORS[name] for name in "ac"}, tmp_path / "1.safetensors")
    save_file({name: TENSORS[name] for name in "bd"}, tmp_path / "2.safetensors")
    return TensorFiles(tmp_path, ["1.safetensors", "2.safetensors"])


def test_shapes_are_known_without_reading(files: TensorFiles) -> None:
    assert files.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def test_tensors_of_several_files_are_read_as_stored(files: TensorFiles) -> None:
    found = {name: files.read(name) for name in "bacd"}

    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensors_are_copies_that_outlive_their_file(files: TensorFiles, tmp_path: Path) -> None:
    found = files.read("a")
    with (tmp_path / "1.safetensors").open("r+b") as file:
        file.write(b"\0" * (tmp_path / "1.safetensors").stat().st_size)

    found += 1

    assert torch.equal(found, TENSORS["a"] + 1)


@pytest.mark.parametrize("names", ["ae", "ea", "aea", "ac", "be"])
def test_several_tensors_are_read_joined(tmp_path: Path, names: str) -> None:
    tensors = {**TENSORS, "b": torch.ones(4, 3, dtype=torch.bfloat16), "c": torch.full((1, 3), 0.5).half()}
    tensors["e"] = torch.full((5, 3), 7.0)
    save_file({name: tensors[name] for name in "abc"}, tmp_path / "1.safetensors")
    save_file({"e": tensors["e"]}, tmp_path / "2.safetensors")

    found = TensorFiles(tmp_path, ["1.safetensors", "2.safetensors"]).read(*names)

    assert found.dtype == tensors[names[0]].dtype
    assert torch.equal(found, torch.cat([tensors[name].to(found.dtype) for name in names]))


def test_joined_tensors_take_no_memory_but_their_own(files: TensorFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def noting(*arguments: Any) -> tuple[torch.Tensor, memoryview]:
        tensor, memory = mapped_tensor(*arguments)
        taken.append(tensor.nbytes)
        return tensor, memory

    monkeypatch.setattr(tensor_files, "mapped_tensor", noting)
    monkeypatch.setattr(weight_memory, "mapped_tensor", noting)

    assert files.read("a", "a", "a").nbytes == sum(taken)


def test_tensors_of_the_kept_type_share_memory_and_keep_their_values(tmp_path: Path) -> None:
    stored = {f"{index}": torch.randn(index, 7).bfloat16() for index in range(1, 40)} | {"wide": torch.randn(5, 7)}
    save_file(stored, tmp_path / "1.safetensors")
    files = TensorFiles(tmp_path, ["1.safetensors"], kept_type=torch.bfloat16)

    found = {name: files.read(name) for name in stored}
    joined = files.read("3", "4", "5")

    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    assert torch.equal(joined, torch.cat([stored[name] for name in "345"]))
    addresses = sorted(tensor.data_ptr() for name, tensor in found.items() if name != "wide")
    assert max(addresses) - min(addresses) < SHARED_BYTES
    assert not min(addresses) <= found["wide"].data_ptr() <= max(addresses)


@pytest.mark.parametrize("names", ["a", "ca", "aa"])
def test_a_file_that_has_become_shorter_is_reported(files: TensorFiles, tmp_path: Path, names: str) -> None:
    with (tmp_path / "1.safetensors").open("r+b") as file:
        file.truncate((tmp_path / "1.safetensors").stat().st_size - 8)

    fails(ModelFileError, lambda: files.read(*names), "1.safetensors")


def test_what_a_model_needs_and_what_is_ignored_passes(files: TensorFiles) -> None:
    files.check({"a": (2, 3), "b": (4,), "c": (1, 2)}, ["d", "not there"])


@pytest.mark.parametrize(
    ("expected", "parts"),
    [
        ({**{name: tuple(tensor.shape) for name, tensor in TENSORS.items()}, "e": (1,)}, ["e"]),
        ({"a": (2, 3), "b": (4,), "c": (1, 2)}, ["d"]),
        ({"a": (3, 2), "b": (4,), "c": (1, 2), "d": (0, 3)}, ["a"]),
        ({"a": (6,), "b": (4,), "c": (1, 2), "d": (0, 3)}, ["a"]),
        ({str(index): (1,) for index in range(9)}, ["9 tensors", "0, 1, 2, ..."]),
    ],
)
def test_a_missing_a_left_over_and_a_misshapen_tensor_are_named(
    files: TensorFiles, tmp_path: Path, expected: dict[str, tuple[int, ...]], parts: list[str]
) -> None:
    fails(ModelFileError, lambda: files.check(expected), str(tmp_path), *parts)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_a_type_that_is_not_a_plain_float_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(2, 3).to(dtype)}, tmp_path / "1.safetensors")
    files = TensorFiles(tmp_path, ["1.safetensors"])

    fails(ModelFileError, lambda: files.check({"a": (2, 3)}), str(tmp_path), "a (")
