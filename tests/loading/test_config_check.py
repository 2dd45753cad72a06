"""Model folders before transformers sees them: facts, or an error that names the file."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.core.errors import ModelFileError
from specgen.loading.config_check import check_folder, check_sizes, has_weights
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.resolved_model import ModelConfig
from specgen.loading.rotary_config import scaled_window
from tests.loading.builders import edit_json, fails, make_model


def test_a_complete_folder_gives_its_config(folder: Path) -> None:
    facts = check_folder(folder)

    assert facts == ModelConfig(
        model_type="llama",
        vocab_rows=64,
        max_positions=128,
        quant_method=None,
        dtype="float32",
        num_parameters=22_688,
        num_weight_bytes=90_752,
        widths_fit_blocks=False,
        widths=(32, 64),
        weight_files=("model.safetensors",),
        decoder=decoder_spec(json.loads((folder / "config.json").read_text())),
    )


def test_facts_of_a_text_config_count(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        max_position_embeddings=None,
        text_config={"max_position_embeddings": 4096, "vocab_size": 70},
    )

    facts = check_folder(folder)

    assert (facts.max_positions, facts.vocab_rows) == (4096, 70)


def test_an_earlier_quantization_is_reported(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})

    assert check_folder(folder).quant_method == "gptq"


def test_weights_in_several_files_are_added_up(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="30KB")

    facts = check_folder(tmp_path)

    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (facts.num_parameters, facts.num_weight_bytes) == (22_688, 90_752)


# F16


def in_header(data: bytes, old: bytes, new: bytes) -> bytes:
    """With a change in the header, and its length as it then is: all else about the file is whole."""
    length = struct.unpack_from("<Q", data)[0]
    header = data[8 : 8 + length]
    assert header.count(old) == 1
    header = header.replace(old, new).rstrip(b" ")
    header += b" " * (-len(header) % 8)
    json.loads(header)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


MUTATIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "shorter than a length": lambda data: data[:5],
    "cut by one byte": lambda data: data[:-1],
    "cut in the header": lambda data: data[:60],
    "header of 2^62": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "header of half a gigabyte": lambda data: struct.pack("<Q", 2**29) + data[8:],
    "garbage in the header": lambda data: data[:8] + b"\xff" * 40 + data[48:],
    "header that is a list": lambda data: struct.pack("<Q", 2) + b"[]",
    "trailing bytes": lambda data: data + b"\0",
    "hole": lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
    "negative offset": lambda data: in_header(data, b'"data_offsets":[0,', b'"data_offsets":[-4,'),
    "shape that does not fit": lambda data: data.replace(b'"shape":[64,32]', b'"shape":[64,33]'),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.fault("F16")
def test_a_damaged_weight_file_is_named(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(MUTATIONS[name](data))
    assert path.read_bytes() != data

    error = fails(ModelFileError, lambda: check_folder(folder), str(path))

    assert error.exit_code == 3


# F20


@pytest.mark.parametrize("content", ["", "{", "[]", "nonsense", "[" * 100_000, '"text"'])
@pytest.mark.fault("F20")
def test_a_config_that_is_not_a_json_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)

    fails(ModelFileError, lambda: check_folder(folder), "config.json")


def test_a_binary_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\0\0")

    fails(ModelFileError, lambda: check_folder(folder), "config.json")


@pytest.mark.fault("F20")
def test_a_missing_config_is_reported(folder: Path) -> None:
    (folder / "config.json").unlink()

    fails(ModelFileError, lambda: check_folder(folder), "config.json")


def test_a_config_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**30)

    fails(ModelFileError, lambda: check_folder(folder), "64 MiB")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"num_hidden_layers": -1},
        {"vocab_size": 10**9},
        {"num_attention_heads": 0},
        {"vocab_size": True},
    ],
)
@pytest.mark.fault("F20")
def test_implausible_sizes_are_refused(folder: Path, change: dict[str, object]) -> None:
    edit_json(folder / "config.json", **change)

    fails(ModelFileError, lambda: check_folder(folder), next(iter(change)))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("no-such-type", "'no-such-type'"),
        ("t5", "t5"),
        (None, "model_type"),
        (7, "model_type"),
    ],
)
def test_a_model_type_that_can_not_run_is_refused(folder: Path, model_type: object, reason: str) -> None:
    edit_json(folder / "config.json", model_type=model_type)

    fails(ModelFileError, lambda: check_folder(folder), reason)


# F21


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
@pytest.mark.fault("F21")
def test_a_folder_of_pickles_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)

    fails(ModelFileError, lambda: check_folder(folder), name)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    fails(ModelFileError, lambda: check_folder(folder), "model.safetensors")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("model.gguf", "model.gguf"), ("adapter_config.json", "LoRA"), ("inner/config.json", "inner")],
)
def test_the_hint_names_what_the_folder_contains(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()

    fails(ModelFileError, lambda: check_folder(tmp_path), "config.json", hint)


# F22, F23


@pytest.mark.fault("F22")
def test_code_of_a_model_is_never_run(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})

    fails(ModelFileError, lambda: check_folder(folder), "code")


def test_code_in_the_folder_of_a_supported_model_is_ignored(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})

    assert check_folder(folder).model_type == "llama"


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main"},
        {"_attn_implementation_internal": "paged|evil"},
        {"experts_implementation": "a:b"},
        {"attn_implementation": {"text_config": "evil/kernel"}},
        {"text_config": {"attn_implementation": "evil/kernel"}},
        {"layers": [{"deep": [{"attn_implementation": ["sdpa", "evil/kernel"]}]}]},
    ],
)
@pytest.mark.fault("F23")
def test_a_kernel_on_the_hub_is_refused(folder: Path, change: dict[str, object]) -> None:
    edit_json(folder / "config.json", **change)

    fails(
        ModelFileError,
        lambda: check_folder(folder),
        "attn_implementation" if "attn" in str(change) else "experts_implementation",
    )


@pytest.mark.parametrize("kind", ["eager", "sdpa", "flash_attention_2"])
def test_an_attention_of_the_library_is_accepted(folder: Path, kind: str) -> None:
    edit_json(folder / "config.json", _attn_implementation=kind)

    check_folder(folder)


# index files


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "c:x", 7])
def test_a_shard_outside_the_folder_is_refused(folder: Path, name: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    edit_json(folder / "model.safetensors.index.json", weight_map={"a": name})

    fails(ModelFileError, lambda: check_folder(folder), "model.safetensors.index.json", repr(name))


def test_a_weight_file_outside_the_folder_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", transformers_weights="../model.safetensors")

    fails(ModelFileError, lambda: check_folder(folder), "'../model.safetensors'")


def test_a_missing_shard_is_reported(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="30KB")
    last = max(tmp_path.glob("*.safetensors"))
    last.unlink()

    fails(ModelFileError, lambda: check_folder(tmp_path), "1 of", last.name)
    assert not has_weights(tmp_path)


@pytest.mark.fault("F32")
def test_a_fifo_among_the_files_does_not_block(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")

    fails(ModelFileError, lambda: check_folder(folder), "config.json")


def test_a_dangling_weight_file_is_reported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nowhere")

    fails(ModelFileError, lambda: check_folder(folder), "model.safetensors")


@pytest.mark.fault("F130")
@pytest.mark.parametrize(
    ("model_type", "inner", "parts"),
    [
        ("mistral3", "mistral", ("images", "mistral3", "type mistral")),
        ("llava", "llama", ("images", "llava", "type llama")),
        ("idefics3", "llama", ("images", "type llama")),
        ("internvl", "qwen2", ("images", "type qwen2")),
        ("qwen2_5_vl", "qwen2_5_vl_text", ("images", "type qwen2_5_vl_text")),
        ("speech_to_text", None, ("for speech",)),
        ("t5", None, ("encoder",)),
        ("vit", None, ("vit", "generate")),
    ],
)
def test_a_model_for_more_than_text_is_called_so(
    tmp_path: Path, model_type: str, inner: str | None, parts: tuple[str, ...]
) -> None:
    config = {"model_type": model_type, **({"text_config": {"model_type": inner}} if inner else {})}
    (tmp_path / "config.json").write_text(json.dumps(config))

    fails(ModelFileError, lambda: check_folder(tmp_path), *parts)


@pytest.mark.fault("F130")
@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "whisper"}, "for speech"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, "for speech"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "decoder"),
        ({"model_type": "marian", "architectures": ["MarianMTModel"]}, "decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}, "RobertaForSequence"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequence"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "Qwen2ForRewardModel"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "xlm-roberta"}, "encoder"),
    ],
)
def test_a_model_with_another_head_is_called_so(folder: Path, config: dict[str, Any], part: str) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "architectures": None, **config}))

    error = fails(ModelFileError, lambda: check_folder(folder), part)

    assert "download" not in f"{error.hint}"


@pytest.mark.fault("F130")
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bart", "architectures": ["BartForCausalLM"], "is_encoder_decoder": False},
        {"model_type": "bert", "architectures": ["BertForMaskedLM"], "is_decoder": True},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "roberta", "architectures": ["RobertaForCausalLM"]},
        {"model_type": "gpt2", "architectures": ["GPT2Model"]},
        {"model_type": "llama", "architectures": "LlamaForSequenceClassification"},
    ],
)
def test_a_causal_model_is_accepted_whatever_its_config_names(folder: Path, config: dict[str, Any]) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, **config}))

    assert check_folder(folder).model_type == config["model_type"]


@pytest.mark.fault("F130")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model_index.json", "images"),
        ("params.json", "Mistral"),
        ("model.onnx", "ONNX"),
        ("adapter_config.json", "LoRA"),
    ],
)
def test_a_folder_of_another_format_is_called_so(tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / name).write_text("{}")

    fails(ModelFileError, lambda: check_folder(tmp_path), part)


@pytest.mark.fault("F142")
@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}, 128),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 512),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, 256),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 512),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}}, 128),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "short_factor": [1.0]}}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "model_type": "gemma3_text"}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": "8"}}, 128),
        ({"rope_scaling": None}, 128),
    ],
)
def test_the_window_is_scaled_by_the_rotary_embedding(config: dict[str, Any], window: int) -> None:
    assert scaled_window(config, 128) == window


@pytest.mark.fault("F143")
def test_a_width_per_layer_is_plausible(folder: Path) -> None:
    check_sizes({"intermediate_size": [64, 32]}, folder)

    for sizes in ([], [64, 0], [64, "a"]):
        fails(
            ModelFileError, lambda sizes=sizes: check_sizes({"intermediate_size": sizes}, folder), "intermediate_size"
        )


@pytest.mark.fault("F145")
def test_a_window_that_the_code_does_not_mask_is_all_of_the_context(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="moshi", sliding_window=24, max_position_embeddings=512)

    assert check_folder(folder).max_positions == 24


@pytest.mark.fault("F164")
@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["consolidated.safetensors"], "consolidated.safetensors"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "index.json"),
    ],
)
def test_weights_under_another_name_are_named(folder: Path, names: list[str], part: str) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(weights)

    error = fails(ModelFileError, lambda: check_folder(folder))

    assert re.search(r"\bmodel\.safetensors(?![.\w])", error.message)
    assert part in (error.hint or "")


@pytest.mark.fault("F164")
def test_the_folder_of_a_hub_cache_leads_to_its_snapshot(folder: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--tiny"
    folder_of_commit = cached / "snapshots" / "abc"
    folder_of_commit.mkdir(parents=True)
    (folder_of_commit / "config.json").write_bytes((folder / "config.json").read_bytes())

    fails(ModelFileError, lambda: check_folder(cached), str(folder_of_commit))


@pytest.mark.fault("F161")
@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_whose_length_begins_as_a_pickle_is_read(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    old = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + old]
    length += (old // 65536 + 1) * 65536
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + data[8 + old :])

    assert check_folder(folder).num_parameters > 0
