"""GGUF files as folders in the cache: made once, whole or not at all."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import struct
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specgen.core.errors import LoadError, MemoryShortageError, ModelFileError
from specgen.core.model_files import read_json
from specgen.core.progress import SILENT
from specgen.core.settings import ModelSettings
from specgen.loading import libraries
from specgen.loading.config_check import check_folder
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.gguf import convert, model_folder, tokenizer
from specgen.loading.gguf.convert import convert_gguf
from specgen.loading.libraries import gc_paused
from specgen.loading.weights import load_weights
from specgen.models.decoder_model import DecoderModel
from specgen.storage import folders
from specgen.storage.folders import cache_root, single_writer
from specgen.text.generation_config import end_ids
from specgen.text.tokenizer import load_tokenizer
from specgen.text.vocabulary import table_size
from tests.fakes import QuickCollector
from tests.loading.builders import (
    CHAT_TEMPLATE,
    RecordedProgress,
    array,
    fails,
    gguf,
    make_gguf,
    pair,
    resolved,
    tensor,
    text,
)
from tests.loading.test_gguf_unpack import write
from tests.profiles import thorough_except


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "Tiny Model.Q4.gguf")


def entries(cache: Path) -> list[str]:
    """What a conversion left in the cache, lock files aside."""
    models = cache / "models"
    return sorted(path.name for path in models.iterdir() if path.suffix != ".lock") if models.exists() else []


# the happy path


def test_a_converted_file_holds_its_weights(source: Path) -> None:
    import gguf as library

    folder = convert_gguf(source)

    loaded = load_weights(resolved(folder, ModelSettings("tiny", dtype="float32"), from_gguf=True), 64)
    assert isinstance(loaded.model, DecoderModel)
    gate_up: Any = loaded.model.decoder.layers[1].mlp.gate_up_proj
    stored = {tensor.name: tensor.data for tensor in library.GGUFReader(source).tensors}
    expected = torch.tensor(stored["blk.1.ffn_up.weight"])
    assert torch.equal(gate_up.weight[len(expected) :], expected)
    assert loaded.info.quant == "none"
    assert "from GGUF" in loaded.info.remark


@pytest.mark.parametrize("is_unpacked", [True, False])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.bfloat16)],
)
@pytest.mark.fast("*-True", "BF16-*-False")
def test_weights_in_floats_keep_their_type(
    tmp_path: Path, kind: str, dtype: torch.dtype, is_unpacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf as library

    if not is_unpacked:
        monkeypatch.setattr(model_folder, "unpack", unsupported)
    source = write(tmp_path / "tiny.gguf", "llama", types=(kind,))

    folder = convert_gguf(source)

    tensors = load_file(folder / "model.safetensors")
    stored = next(part for part in library.GGUFReader(source).tensors if part.name == "blk.1.ffn_down.weight")
    values = torch.tensor(library.dequantize(stored.data, stored.tensor_type))
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert torch.equal(tensors["model.layers.1.mlp.down_proj.weight"], values.to(dtype))
    assert check_folder(folder).dtype == str(read_json(folder / "config.json")["dtype"]) == str(dtype)[6:]


def unsupported(*_: Any) -> None:
    raise UnsupportedConfig("toy")


@pytest.mark.thorough
def test_no_model_it_made_on_the_way_stays_in_memory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "gc", QuickCollector())
    monkeypatch.setattr(libraries, "gc", QuickCollector())

    def models() -> int:
        return sum(type(one).__name__ == "LlamaForCausalLM" for one in gc.get_objects())

    gc.collect()
    before = models()
    with gc_paused():
        convert_gguf(source)

        assert models() == before


def test_a_converted_file_holds_its_tokenizer_template_and_end_ids(source: Path) -> None:
    folder = convert_gguf(source)

    tokenizer = load_tokenizer(folder)
    assert table_size(tokenizer) == 64
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert [tokenizer.convert_ids_to_tokens(token) for token in (1, 2, 3)] == ["<|im_start|>", "<|im_end|>", "AB"]
    assert end_ids(tokenizer, read_json(folder / "generation_config.json"), {}) == {0, 2}


@pytest.mark.fault("F92")
def test_a_fine_tune_with_the_eos_of_its_base_model_ends_at_the_end_of_a_turn(tmp_path: Path, cache: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])

    folder = convert_gguf(path)

    ids = end_ids(load_tokenizer(folder), read_json(folder / "generation_config.json"), {})
    assert ids == {0, 2}


@pytest.mark.fault("F93")
@pytest.mark.parametrize(
    ("name", "kind"),
    thorough_except([("bos", 4), ("eos", 5), ("eot", 4)], itertools.product(["bos", "eos", "eot"], [4, 5])),
)
def test_a_special_token_that_is_none_changes_no_other(tmp_path: Path, cache: Path, name: str, kind: int) -> None:
    plain, path = make_gguf(tmp_path / "plain.gguf"), make_gguf(tmp_path / "tiny.gguf")
    key = f"tokenizer.ggml.{name}_token_id".encode()
    data = path.read_bytes()
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + struct.pack("<II", kind, 2**32 - 1) + data[at + 8 :])

    tokenizer, expected = load_tokenizer(convert_gguf(path)), load_tokenizer(convert_gguf(plain))

    assert getattr(tokenizer, f"{name}_token_id", None) is None
    last = table_size(expected) - 1
    assert tokenizer.decode([last], skip_special_tokens=True) == expected.decode([last], skip_special_tokens=True) != ""
    assert tokenizer.encode("AB<|im_start|>A") == expected.encode("AB<|im_start|>A")


def test_tokens_without_an_embedding_are_removed(tmp_path: Path) -> None:
    folder = convert_gguf(make_gguf(tmp_path / "model.gguf", tokens=["<a>", "<b>", "<c>", "AB", "A", "B"]))

    tokenizer = load_tokenizer(folder)
    assert table_size(tokenizer) == 6
    assert "<|endoftext|>" not in tokenizer.get_vocab()  # transformers adds it
    assert max(tokenizer.encode("AB<|endoftext|>A", add_special_tokens=False)) < 6


@pytest.mark.parametrize(("pre", "tokens"), [("smollm", ["\u0120", "1", "2"]), ("gpt-2", ["\u01201", "2"])])
def test_a_pre_tokenizer_that_separates_digits_is_kept(tmp_path: Path, pre: str, tokens: list[str]) -> None:
    vocabulary = ["<a>", "<b>", "<c>", "\u0120", "1", "2", "\u01201"]
    path = make_gguf(tmp_path / "model.gguf", tokens=vocabulary, merges=["\u0120 1"], pre=pre)

    tokenizer = load_tokenizer(convert_gguf(path))

    assert tokenizer.encode(" 12", add_special_tokens=False) == [vocabulary.index(token) for token in tokens]


def test_a_converted_file_is_a_plain_checkpoint(source: Path) -> None:
    folder = convert_gguf(source)

    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert (folder / "model.safetensors").stat().st_size < 22_688 * 4 + 4000


def test_the_second_time_nothing_is_done(source: Path) -> None:
    first, report = convert_gguf(source), RecordedProgress()

    assert convert_gguf(source, report) == first
    assert report.stages == []


def test_each_stage_names_the_file(source: Path) -> None:
    report = RecordedProgress()

    convert_gguf(source, report)

    assert len(report.stages) == 2
    assert all("Tiny Model.Q4.gguf" in stage for stage in report.stages)


def test_the_name_of_an_entry_is_readable(source: Path, cache: Path) -> None:
    folder = convert_gguf(source)

    assert folder.parent == cache / "models"
    assert folder.name.startswith("tiny-model.q4-")
    assert entries(cache) == [folder.name]


def test_a_changed_file_is_converted_again(source: Path) -> None:
    first = convert_gguf(source)
    make_gguf(source, tokens=["<a>", "<b>", "<c>", "AB", "A", "B"])

    second = convert_gguf(source)

    assert first != second
    assert table_size(load_tokenizer(second)) == 6


def test_an_entry_of_an_older_format_is_not_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "FORMAT", tokenizer.FORMAT - 1)
        older = convert_gguf(source)

    assert convert_gguf(source) != older


def test_a_link_and_its_file_share_an_entry(source: Path, tmp_path: Path) -> None:
    (tmp_path / source.name).parent.mkdir(exist_ok=True)
    link = tmp_path / "sub" / source.name
    link.parent.mkdir()
    link.symlink_to(source)

    assert convert_gguf(link) == convert_gguf(source)


def test_an_entry_somebody_emptied_is_made_again(source: Path) -> None:
    folder = convert_gguf(source)
    (folder / "model.safetensors").unlink()

    assert (convert_gguf(source) / "model.safetensors").exists()


# F26, F27


@pytest.mark.parametrize(
    ("pairs", "parts"),
    [
        (
            [pair("general.architecture", 8, text("newmodel")), pair("tokenizer.ggml.model", 8, text("gpt2"))],
            ("'newmodel'", "transformers"),
        ),
        ([pair("general.architecture", 8, text("llama"))], ("tokenizer",)),
        (
            [pair("general.architecture", 8, text("llama")), pair("split.count", 2, b"\3\0")],
            ("3 parts", "llama-gguf-split --merge"),
        ),
    ],
)
@pytest.mark.fault("F27")
def test_a_file_that_can_not_be_converted_is_refused_before_the_work(
    tmp_path: Path, cache: Path, pairs: list[bytes], parts: tuple[str, ...]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(pairs))

    error = fails(ModelFileError, lambda: convert_gguf(path), str(path), *parts)

    assert error.exit_code == 3
    assert entries(cache) == []


def test_a_missing_tensor_is_not_made_up(tmp_path: Path, cache: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", skip="blk.1.ffn_up.weight")

    fails(ModelFileError, lambda: convert_gguf(path), str(path), "model.layers.1.mlp.up_proj.weight")
    assert entries(cache) == []


@pytest.mark.fault("F27")
def test_a_tokenizer_that_the_library_rejects_is_reported(tmp_path: Path, cache: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", tokens=["<a>", "<b>", "<c>", "A", "B", "C"])  # its merge gives no token

    fails(ModelFileError, lambda: convert_gguf(path), str(path), "tokenizer")
    assert entries(cache) == []


def test_a_vocabulary_without_weights_is_not_called_damaged(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        gguf([pair("general.architecture", 8, text("llama")), pair("tokenizer.ggml.model", 8, text("gpt2"))])
    )

    error = fails(ModelFileError, lambda: convert_gguf(path), str(path), "vocabulary")

    assert "damaged" not in (error.hint or "")
    assert entries(cache) == []


def test_a_header_without_required_entries_is_reported(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    tokens = pair("tokenizer.ggml.tokens", 9, array(8, 1, text("a")))
    path.write_bytes(
        gguf(
            [pair("general.architecture", 8, text("llama")), pair("tokenizer.ggml.model", 8, text("gpt2")), tokens],
            [tensor("token_embd.weight", [256])],
            data=bytes(1024),
        )
    )

    fails(ModelFileError, lambda: convert_gguf(path), str(path), "llama.block_count")
    assert entries(cache) == []


# atomicity


class Stop(BaseException):
    """Stands for a signal that ends the program."""


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (model_folder, "_save"),
        (model_folder, "save_end_ids"),
        (model_folder, "_verify"),
        (convert, "publish_folder"),
    ],
)
@pytest.mark.fault("F49")
def test_an_interrupted_conversion_leaves_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    def stop(*args: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, step, stop)
        with pytest.raises(Stop):
            convert_gguf(source)

    assert entries(cache) == []
    assert convert_gguf(source).exists()


def test_files_of_a_killed_conversion_are_deleted(source: Path, cache: Path) -> None:
    folder = convert_gguf(source)
    left_over = cache / "models" / f".{folder.name}.abc"
    folder.rename(left_over)

    assert convert_gguf(source) == folder
    assert entries(cache) == [folder.name]


@pytest.mark.fault("F67")
def test_two_at_once_convert_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[Path] = []
    save = model_folder._save

    def counted(path: Path, *arguments: Any) -> None:
        saves.append(path)
        save(path, *arguments)

    monkeypatch.setattr(model_folder, "_save", counted)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(convert_gguf(source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(saves) == 1
    assert results[0] == results[1]


def test_waiting_for_another_program_is_reported(cache: Path) -> None:
    report, released = RecordedProgress(), threading.Event()
    held = threading.Event()

    def hold() -> None:
        with single_writer(cache / "lock", SILENT):
            held.set()
            released.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    report.stage = lambda text: (RecordedProgress.stage(report, text), released.set())  # type: ignore[method-assign, assignment]
    with single_writer(cache / "lock", report):
        thread.join()

    assert len(report.stages) == 1


# F39, F72


@pytest.mark.fault("F72")
def test_a_full_disk_is_reported_before_the_work(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))

    fails(LoadError, lambda: convert_gguf(source), "977 KiB", "33 MiB", "SPECGEN_CACHE")
    assert entries(cache) == []


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_leaves_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def full(*args: object) -> None:
        raise raised

    monkeypatch.setattr(model_folder, "_save", full)

    fails(LoadError, lambda: convert_gguf(source), "SPECGEN_CACHE")
    assert entries(cache) == []


@pytest.mark.fault("F39")
def test_too_little_memory_for_a_conversion_is_reported(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model_folder, "_save", full)

    fails(MemoryShortageError, lambda: convert_gguf(source), "Tiny Model.Q4.gguf")


def test_an_unwritable_cache_is_reported(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "file" / "cache"))

    fails(LoadError, lambda: convert_gguf(source), "SPECGEN_CACHE")


def test_the_default_cache_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECGEN_CACHE")

    assert cache_root().name == "specgen"


def test_the_published_folder_is_synced_before_it_is_seen(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded(name: str, call: Any) -> Any:
        return lambda *args: (calls.append(name), call(*args))[1]

    monkeypatch.setattr(os, "fsync", recorded("fsync", fsync))
    monkeypatch.setattr(os, "replace", recorded("replace", replace))
    convert_gguf(source)

    ours = calls[calls.index("fsync") :]
    assert ours.index("replace") >= 6
    assert ours[-1] == "fsync"
