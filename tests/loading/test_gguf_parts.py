"""Models split over several GGUF files: all parts are checked, and what is missing or mixed up is named."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.convert import convert_gguf
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.parts import scan_parts
from tests.loading.builders import fails, gguf, pair, tensor, text


def part(number: int, count: int, *names: str) -> bytes:
    """Returns part `number` of `count`; only the first one has metadata, as llama-gguf-split writes them."""
    split = [pair("split.no", 2, struct.pack("<H", number)), pair("split.count", 2, struct.pack("<H", count))]
    own = [pair("general.architecture", 8, text("llama")), pair("tokenizer.ggml.model", 8, text("gpt2"))]
    return gguf([*split, *(own if number == 0 else [])], [tensor(name, [32, 2]) for name in names], data=bytes(1024))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    names = (["a"], ["token_embd.weight", "b"], [])
    paths = [tmp_path / f"m-{number + 1:05}-of-00003.gguf" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(part(number, 3, *names[number]))
    return paths


def scanned(path: Path) -> GgufHeader:
    return scan_parts(path, scan_gguf(path))


@pytest.mark.fault("F128")
def test_the_header_of_the_first_part_describes_the_whole_model(parts: list[Path]) -> None:
    header = scanned(parts[0])

    assert (header.architecture, header.num_parts, header.part) == ("llama", 3, 0)
    assert (header.num_parameters, header.num_weight_bytes, header.vocab_rows) == (3 * 64, 3 * 256, 2)


@pytest.mark.fault("F128")
def test_a_later_part_names_the_first_one(parts: list[Path]) -> None:
    error = fails(ModelFileError, lambda: scanned(parts[1]), "part 2 of 3")

    assert str(parts[0]) in (error.hint or "")


@pytest.mark.fault("F128")
def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[2].unlink()

    fails(ModelFileError, lambda: scanned(parts[0]), "m-00003-of-00003.gguf", "missing")


@pytest.mark.fault("F128")
def test_a_part_of_another_model_is_refused(parts: list[Path]) -> None:
    parts[2].write_bytes(part(1, 4))

    fails(ModelFileError, lambda: scanned(parts[0]), str(parts[2]), "part 2 of 4")


@pytest.mark.fault("F128")
def test_a_damaged_part_is_refused(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-900])

    fails(ModelFileError, lambda: scanned(parts[0]), str(parts[1]))


@pytest.mark.fault("F128")
def test_a_renamed_first_part_is_explained(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))

    error = fails(ModelFileError, lambda: scanned(renamed), "its name")

    assert "00001-of-00003" in (error.hint or "")


@pytest.mark.fault("F128")
def test_transformers_reads_one_file_and_the_program_that_joins_them_is_named(parts: list[Path], cache: Path) -> None:
    error = fails(ModelFileError, lambda: convert_gguf(parts[0]), "3 parts", "llama-gguf-split --merge")

    assert "github.com/ggml-org/llama.cpp" in (error.hint or "")
