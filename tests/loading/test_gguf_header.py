"""The GGUF scan: a header or a ModelFileError for any bytes, in milliseconds and in little memory."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.other_kinds import refuse_vocabulary
from specgen.loading.gguf.reader import GGML_TYPES
from tests.loading.builders import array, fails, gguf, make_gguf, pair, tensor, text
from tests.profiles import num_examples

ARCHITECTURE = pair("general.architecture", 8, text("llama"))
WHOLE = gguf([ARCHITECTURE], [tensor("a", [32, 2])], data=bytes(256))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_a_real_file_is_summarized(tmp_path: Path) -> None:
    header = scan_gguf(make_gguf(tmp_path / "tiny.gguf"))

    assert (header.architecture, header.tokenizer_model, header.context_length) == ("llama", "gpt2", 128)
    assert (header.quantization, header.num_parameters, header.num_layers) == ("F32", 22_688, 2)
    assert header.end_ids == (2, 0)
    assert header.num_parts == 1


LAYERS = ("blk.0.ssm_conv1d.weight", "blk.0.ssm_out.weight", "blk.2.shortconv.conv.weight", "blk.3.attn_k.weight")
STATES = (
    # A convolution keeps its latest inputs; a recurrence has a state of state_size for each inner channel.
    ("lfm2", {"embedding_length": 1024, "shortconv.l_cache": 3}, 2 * 1024),
    ("mamba", {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 8}, 3 * 64 + 64 * 8),
    (
        "qwen35",
        {"ssm.conv_kernel": 4, "ssm.inner_size": 2048, "ssm.state_size": 128, "ssm.group_count": 16},
        3 * (2048 + 2 * 16 * 128) + 2048 * 128,
    ),
    ("rwkv7", {"embedding_length": 64, "wkv.head_size": 16}, None),
    ("mamba", {"ssm.conv_kernel": 4}, None),
    ("mamba", {"ssm.conv_kernel": 4, "ssm.inner_size": 2**31, "ssm.state_size": 8}, None),
)


@pytest.mark.parametrize(("architecture", "keys", "num_values"), STATES)
def test_the_size_of_running_states_follows_from_the_keys(
    architecture: str, keys: dict[str, int], num_values: int | None, tmp_path: Path
) -> None:
    pairs = [pair("general.architecture", 8, text(architecture))]
    pairs += [pair(f"{architecture}.{key}", 4, struct.pack("<I", value)) for key, value in keys.items()]
    gates = ("blk.0.attn_qkv.weight", "blk.0.attn_gate.weight")
    tensors = [tensor(name, [32, 2]) for name in (*LAYERS, *gates)]

    header = scan_gguf(written(tmp_path, gguf(pairs, tensors, data=bytes(256))))

    assert header.state_layers == {"blk.0", "blk.2"}
    assert header.state_bytes == (None if num_values is None else 2 * 4 * num_values)


def test_a_model_with_attention_alone_has_no_running_states(tmp_path: Path) -> None:
    assert scan_gguf(make_gguf(tmp_path / "tiny.gguf")).state_bytes == 0


def test_version_2_is_read(tmp_path: Path) -> None:
    assert scan_gguf(written(tmp_path, gguf(version=2))).architecture == "llama"


def test_the_type_table_is_the_one_of_the_gguf_package() -> None:
    from gguf import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in GGML_TYPES if kind in theirs} == GGML_TYPES


# F24


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GG", "4 bytes"),
        (b"GGML" + bytes(40), "GGUF"),
        (b"PK\3\4" + bytes(40), "GGUF"),
        (gguf(version=99), "version 99"),
        (gguf(version=1), "version 1"),
        (gguf(version=3 << 24), "big-endian"),
    ],
)
@pytest.mark.fault("F24")
def test_a_file_that_is_not_a_gguf_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, data)), "model.gguf", reason)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.99, 0.999])
@pytest.mark.fault("F24")
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    data = make_gguf(tmp_path / "tiny.gguf").read_bytes()

    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, data[: int(len(data) * share)])), "model.gguf")


@pytest.mark.fault("F27")
def test_a_missing_architecture_is_refused(tmp_path: Path) -> None:
    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, gguf([]))), "general.architecture")


@pytest.mark.fault("F129")
@pytest.mark.parametrize(
    ("kind", "name"),
    [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4")],
)
def test_a_type_that_llama_cpp_removed_is_named(tmp_path: Path, kind: int, name: str) -> None:
    path = written(tmp_path, gguf([ARCHITECTURE], [tensor("a", [256], kind=kind)], data=bytes(256)))

    error = fails(ModelFileError, lambda: scan_gguf(path), name, "removed")

    assert "corrupt" not in error.message
    assert "download" not in (error.hint or "")


@pytest.mark.fault("F129")
@pytest.mark.parametrize("kind", [42, 97, 137, 150, 337, 398])
def test_a_type_of_another_program_is_not_damage(tmp_path: Path, kind: int) -> None:
    path = written(tmp_path, gguf([ARCHITECTURE], [tensor("a", [256], kind=kind)], data=bytes(256)))

    error = fails(ModelFileError, lambda: scan_gguf(path), str(kind), "another program")

    assert "corrupt" not in error.message


@pytest.mark.fault("F129")
def test_an_absurd_type_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path, gguf([ARCHITECTURE], [tensor("a", [256], kind=2**31)], data=bytes(256)))

    fails(ModelFileError, lambda: scan_gguf(path), "corrupt", "2147483648")


OTHER_KINDS = {
    "mmproj": ({"general.architecture": "clip"}, "images"),
    "type mmproj": ({"general.architecture": "llama", "general.type": "mmproj"}, "images"),
    "adapter": ({"general.architecture": "llama", "general.type": "adapter"}, "LoRA"),
    "imatrix": ({"general.type": "imatrix"}, "importance matrix"),
    "embeddings": ({"general.architecture": "nomic-bert"}, "embeddings"),
    "pictures": ({"general.architecture": "flux"}, "draws"),
    "speech": ({"general.architecture": "whisper"}, "speech"),
    "translation": ({"general.architecture": "t5"}, "translations"),
}


@pytest.mark.fault("F173")
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_a_file_that_holds_no_model_that_writes_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    entries, what = OTHER_KINDS[name]
    pairs = [pair(key, 8, text(value)) for key, value in entries.items()]
    path = written(tmp_path, gguf(pairs, [tensor("a", [256])], data=bytes(1024)))

    error = fails(ModelFileError, lambda: scan_gguf(path), "model.gguf", what)

    assert "corrupt" not in error.message
    assert "download" not in (error.hint or "")


def test_a_file_of_a_vocabulary_is_called_what_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, gguf([ARCHITECTURE, pair("tokenizer.ggml.model", 8, text("gpt2"))], []))

    error = fails(ModelFileError, lambda: refuse_vocabulary(scan_gguf(path), path), "vocabulary")

    assert "incomplete" not in error.message
    assert "download" not in (error.hint or "")


@pytest.mark.fault("F127")
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><html>" + bytes(60), "web page"),
        (b"\n <html lang=en>" + bytes(60), "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"PK\3\4" + bytes(60), "zip"),
        (b"tjgg" + bytes(60), "GGML"),
        (b"MZqFpD='\n" + bytes(60), "llamafile"),
        (b"\x1f\x8b" + bytes(60), "gzip"),
        ((60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}', "safetensors"),
        (gguf(version=1), "version 1"),
        (gguf(version=3 << 24), "big-endian"),
    ],
)
def test_a_file_with_other_content_is_called_what_it_is(tmp_path: Path, data: bytes, what: str) -> None:
    error = fails(ModelFileError, lambda: scan_gguf(written(tmp_path, data)), "model.gguf", what)

    assert "corrupt" not in error.message


# F25

BOMBS = {
    "array of 2^28": gguf([pair("a", 9, array(6, 2**28))]),
    "array of 2^40": gguf([pair("a", 9, array(6, 2**40))]),
    "string array of 2^28": gguf([pair("a", 9, array(8, 2**28))]),
    "string array of 2^40": gguf([pair("a", 9, array(8, 2**40))]),
    "nested arrays": gguf([pair("a", 9, array(9, 1) * 3000 + array(4, 0))]),
    "string of 2^63": gguf([pair("a", 8, struct.pack("<Q", 2**63) + b"x" * 64)]),
    "key of 2^63": gguf([struct.pack("<Q", 2**63) + b"x" * 64]),
    "10^6 dimensions": gguf(None, [text("a") + struct.pack("<I", 10**6) + bytes(64)]),
    "no dimensions": gguf(None, [text("a") + struct.pack("<I", 0) + bytes(64)]),
    "2^40 pairs": gguf(num_pairs=2**40),
    "65536 pairs in 100 bytes": gguf(num_pairs=65_536),
    "2^40 tensors": gguf(num_tensors=2**40),
    "65536 tensors in 100 bytes": gguf(num_tensors=65_536),
    "2^33 x 2^33": gguf(None, [tensor("a", [2**33, 2**33])], data=bytes(64)),
    "2^32 x 2^32, 0 modulo 2^64": gguf(None, [tensor("a", [2**32, 2**32])], data=bytes(64)),
    "empty dimension": gguf(None, [tensor("a", [0, 4])], data=bytes(64)),
    "offset 2^50": gguf(None, [tensor("a", [4], offset=2**50)], data=bytes(64)),
    "offset 2^64 - 32": gguf(None, [tensor("a", [4], offset=2**64 - 32)], data=bytes(64)),
    "offset off the grid": gguf(None, [tensor("a", [4], offset=1)], data=bytes(64)),
    "alignment 0": gguf([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment 3": gguf([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 3))]),
    "alignment 2^31": gguf([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 2**31))]),
    "alignment as text": gguf([ARCHITECTURE, pair("general.alignment", 8, text("32"))]),
    "same key twice": gguf([ARCHITECTURE, ARCHITECTURE]),
    "same tensor twice": gguf(None, [tensor("a", [4]), tensor("a", [4])], data=bytes(64)),
    "unknown tensor type": gguf(None, [tensor("a", [4], kind=999)], data=bytes(64)),
    "type that was taken out": gguf(None, [tensor("a", [32], kind=4)], data=bytes(64)),
    "unknown value type": gguf([pair("a", 77, bytes(8))]),
    "array of an unknown type": gguf([pair("a", 9, array(77, 1, bytes(8)))]),
    "block cut in half": gguf(None, [tensor("a", [33], kind=8)], data=bytes(256)),
    "key that is not UTF-8": gguf([pair("a", 0, b"\0").replace(b"a", b"\xff")]),
    "architecture that is not UTF-8": gguf([pair("general.architecture", 8, text(b"\xff\xfe"))]),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.fault("F25")
def test_a_bomb_is_refused_quickly_and_in_little_memory(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, BOMBS[name])
    tracemalloc.start()
    begin = time.process_time()

    fails(ModelFileError, lambda: scan_gguf(path), str(path))

    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2  # of CPU time: to walk over what a bomb claims would take minutes
    assert peak < 5 * 2**20


def test_the_data_of_a_tensor_must_be_in_the_file(tmp_path: Path) -> None:
    scan_gguf(written(tmp_path, WHOLE))

    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, WHOLE[:-1])), "'a'", "1 bytes")


def test_many_strings_are_counted_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:  # 2^26 empty strings would fit into this sparse file, and take half a minute
        file.write(gguf([pair("a", 9, array(8, 2**26))]))
        file.truncate(2**30)

    fails(ModelFileError, lambda: scan_gguf(path), "67108864")


@settings(max_examples=num_examples(200), deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_give_a_header_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp(), b"GGUF\3\0\0\0" + data)

    with contextlib.suppress(ModelFileError):
        scan_gguf(path)


@settings(max_examples=num_examples(300), deadline=None, derandomize=True, database=None)
@given(position=st.integers(0, len(WHOLE) - 1), change=st.binary(min_size=1, max_size=9))
def test_any_change_of_a_file_gives_a_header_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: bytes
) -> None:
    data = WHOLE[:position] + change + WHOLE[position + len(change) :]
    path = written(tmp_path_factory.getbasetemp(), data)

    with contextlib.suppress(ModelFileError):
        scan_gguf(path)


TOKENS = pair("tokenizer.ggml.tokens", 9, array(8, 2, text("a") + text("b")))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([pair("tokenizer.ggml.tokens", 9, array(4, 1, bytes(4)))], "type 4"),
        ([TOKENS, pair("tokenizer.ggml.token_type", 9, array(6, 2, bytes(8)))], "type 6"),
        ([TOKENS, pair("tokenizer.ggml.token_type", 9, array(5, 1, bytes(4)))], "1 entries"),
        ([TOKENS, pair("tokenizer.ggml.scores", 9, array(6, 3, bytes(12)))], "3 entries"),
        ([pair("tokenizer.ggml.scores", 9, array(6, 3, bytes(12)))], "0 tokens"),
    ],
)
@pytest.mark.fault("F25")
def test_what_llama_cpp_reads_by_the_number_of_tokens_has_that_number(
    tmp_path: Path, more: list[bytes], reason: str
) -> None:
    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, gguf([ARCHITECTURE, *more]))), reason)


@pytest.mark.fault("F93")
@pytest.mark.parametrize(("kind", "value"), [(4, struct.pack("<I", 2**32 - 1)), (5, struct.pack("<i", -1))])
@pytest.mark.parametrize("name", ["padding", "unknown", "bos", "eos", "eot", "mask"])
def test_an_id_that_is_none_is_read_as_if_its_key_were_missing(
    tmp_path: Path, name: str, kind: int, value: bytes
) -> None:
    missing = pair(f"tokenizer.ggml.{name}_token_id", kind, value)

    header = scan_gguf(written(tmp_path, gguf([ARCHITECTURE, TOKENS, missing])))

    assert header.end_ids == ()
    assert [(absent.key, absent.is_signed) for absent in header.absent_ids] == [
        (f"tokenizer.ggml.{name}_token_id", kind == 5)
    ]


@pytest.mark.fault("F158")
@pytest.mark.parametrize(("kind", "value"), [(4, 2), (4, 2**31), (5, -2), (10, 2**40)])
def test_an_id_beyond_the_table_is_ignored_with_a_notice(tmp_path: Path, kind: int, value: int) -> None:
    layout = {4: "<I", 5: "<i", 10: "<Q"}[kind]
    beyond = pair("tokenizer.ggml.eos_token_id", kind, struct.pack(layout, value))

    header = scan_gguf(written(tmp_path, gguf([ARCHITECTURE, beyond, TOKENS])))

    assert header.end_ids == ()
    assert [absent.key for absent in header.absent_ids] == ["tokenizer.ggml.eos_token_id"]
    (notice,) = header.notices
    assert str(value) in notice
    assert "tokenizer.ggml.eos_token_id" in notice


@pytest.mark.fault("F157")
@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("llama.block_count", 4, struct.pack("<I", 2**31)),
        ("llama.block_count", 4, bytes(4)),
        ("llama.block_count", 8, text("2")),
        ("llama.rope.freq_base", 6, struct.pack("<f", float("nan"))),
        ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", -1.0)),
        ("llama.expert_used_count", 4, struct.pack("<I", 2)),
        ("llama.rope.scaling.type", 8, text("dynamic")),
        ("llama.attention.causal", 7, bytes(1)),
    ],
)
def test_a_value_that_can_not_be_is_refused_by_the_name_of_its_key(
    tmp_path: Path, key: str, kind: int, value: bytes
) -> None:
    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, gguf([ARCHITECTURE, pair(key, kind, value)]))), key)


@pytest.mark.fault("F92")
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<|endoftext|>", "<|im_end|>", "im_end"], (0, 1)),
        (["a", "<end_of_turn>"], (0, 1)),
        (["a", "<|end|>", "<|return|>", "<|call|>"], (0, 2, 3)),
        (["a", "<|end|>", "<|return|>"], (0, 1, 2)),
        (["a", "</s>", "<|tool_response>"], (0, 2)),
        (["a", "b"], (0,)),
    ],
)
def test_tokens_that_spell_an_end_of_turn_end_the_text(
    tmp_path: Path, tokens: list[str], expected: tuple[int, ...]
) -> None:
    table = pair("tokenizer.ggml.tokens", 9, array(8, len(tokens), b"".join(map(text, tokens))))
    eos = pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0))

    assert scan_gguf(written(tmp_path, gguf([ARCHITECTURE, table, eos]))).end_ids == expected


@pytest.mark.fault("F157")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", 0),
        ("rope.dimension_count", 3),
        ("attention.key_length", 0),
        ("attention.value_length", 7),
        ("full_attention_interval", 0),
        ("ssm.inner_size", 0),
    ],
)
def test_a_size_with_which_llama_cpp_ends_the_process_is_refused(tmp_path: Path, key: str, value: int) -> None:
    entry = pair(f"llama.{key}", 4, struct.pack("<I", value))

    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, gguf([ARCHITECTURE, entry]))), f"llama.{key}")


@pytest.mark.fault("F157")
def test_heads_that_groups_do_not_divide_are_refused(tmp_path: Path) -> None:
    entries = [pair(f"llama.attention.head_count{end}", 4, struct.pack("<I", n)) for end, n in (("", 3), ("_kv", 2))]

    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, gguf([ARCHITECTURE, *entries]))), "head_count")


@pytest.mark.fault("F157")
@pytest.mark.parametrize(
    ("architecture", "num_heads", "parts", "missing"),
    [
        ("olmo2", None, ("attn_output", "attn_q"), "olmo2.attention.head_count"),
        ("olmo2", 0, ("attn_output", "attn_q"), "olmo2.attention.head_count"),
        ("phi3", 4, ("attn_output", "attn_q_norm"), "blk.0.attn_qkv.weight"),
        ("qwen35", 4, ("ssm_conv1d", "attn_gate"), "blk.0.attn_qkv.weight"),
        ("qwen35", 4, ("ssm_conv1d", "attn_qkv"), "blk.0.attn_gate.weight"),
        ("phi3", 4, ("attn_output", "attn_qkv"), None),
        ("qwen3next", 4, ("ssm_conv1d", "ssm_in"), None),
        ("mamba", None, ("ssm_conv1d",), None),
    ],
)
def test_layers_without_what_llama_cpp_reads_are_refused(
    architecture: str, num_heads: int | None, parts: Sequence[str], missing: str | None, tmp_path: Path
) -> None:
    pairs = [pair("general.architecture", 8, text(architecture))]
    if num_heads is not None:
        pairs.append(pair(f"{architecture}.attention.head_count", 4, struct.pack("<I", num_heads)))
    path = written(tmp_path, gguf(pairs, [tensor(f"blk.0.{part}.weight", [32, 2]) for part in parts], data=bytes(256)))

    if missing is None:
        scan_gguf(path)
    else:
        fails(ModelFileError, lambda: scan_gguf(path), missing)


def states(architecture: bytes, inner_size: int) -> bytes:
    name = architecture.decode()
    entries = [
        pair(f"{name}.ssm.{end}", 4, struct.pack("<I", n))
        for end, n in (("inner_size", inner_size), ("time_step_rank", 4))
    ]
    return gguf([pair("general.architecture", 8, text(architecture)), *entries])


@pytest.mark.fault("F157")
def test_a_running_state_that_its_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    fails(ModelFileError, lambda: scan_gguf(written(tmp_path, states(b"qwen35", 6))), "ssm.inner_size")


@pytest.mark.parametrize(("architecture", "inner_size"), [(b"qwen35", 8), (b"mamba", 6)])
def test_a_running_state_that_fits_is_no_reason_to_refuse(tmp_path: Path, architecture: bytes, inner_size: int) -> None:
    assert scan_gguf(written(tmp_path, states(architecture, inner_size))).architecture == architecture.decode()


def test_a_model_with_running_states_may_rotate_nothing(tmp_path: Path) -> None:
    entries = [pair(f"llama.{key}", 4, struct.pack("<I", n)) for key, n in (("rope.dimension_count", 0), ("ssm.x", 4))]

    assert scan_gguf(written(tmp_path, gguf([ARCHITECTURE, *entries]))).architecture == "llama"
