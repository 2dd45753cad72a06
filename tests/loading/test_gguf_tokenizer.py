"""Tokenizers of GGUF files: built here, they equal transformers' conversion; what is not known is left to it."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.tokenizer import write_tokenizer
from specgen.loading.gguf.tokenizer_entries import read_tokenizer_entries
from specgen.loading.gguf.tokenizer_model import _SPLITTINGS, build_tokenizer, save_tokenizer
from specgen.text.tokenizer import load_tokenizer
from tests.loading.builders import CHAT_TEMPLATE, RecordedProgress, make_gguf
from tests.processes.environment import environment
from tests.real_models import real_model

SAMPLES = ("x  1", "a  2023", "a\n\n\nb", "   x    y ", "\t\r\n ", "don't DON'T", "你好，世界", "😀👍🏽 é", "½ ² ٣", "")
LIKE_GPT2 = [
    name for name, splitting in _SPLITTINGS.items() if splitting.separates_digits or name in ("mpt", "jais", "trillion")
]
NEWER = {"glm4", "chatglm-bpe", "stablelm2", "hunyuan"}
"""Read without their rule by transformers; `tests/llamacpp/test_tokenizer.py` compares them with llama.cpp."""
KNOWN_TO_THE_LIBRARY = sorted(_SPLITTINGS.keys() - set(LIKE_GPT2) - NEWER)
PIECES = ["▁", *string.ascii_letters, "▁a", "ab", "▁ab", "▁▁", "b▁", "é", "世"]


def written(path: Path, folder: Path) -> Any:
    """Returns the tokenizer of a file, and the stages that were reported."""
    folder.mkdir()
    report = RecordedProgress()
    write_tokenizer(path, scan_gguf(path), folder, None, report)
    return load_tokenizer(folder), report.stages


def library_tokenizer(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def write_sentencepiece(path: Path, architecture: str, **flags: bool) -> Path:
    """Writes the header of a GGUF with a SentencePiece vocabulary."""
    writer = gguf.GGUFWriter(path, architecture)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(64)
    for add in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *[(f"<0x{byte:02X}>", 6) for byte in range(256)]]
    pieces += [(piece, 1) for piece in PIECES] + [("[USER]", 4)]
    if architecture == "gemma3":
        pieces += [("  ", 4), ("   ", 4)]
        pieces.remove(("▁▁", 1))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([-float(index % 50) for index in range(len(pieces))])
    writer.add_token_types([kind for _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@cache
def real_pair(name: str) -> tuple[Tokenizer, Tokenizer]:
    """Returns our tokenizer of a real file, and the one that transformers converted."""
    path, reference = real_model(f"{name}.gguf"), real_model(f"{name}/tokenizer.json")
    return build_tokenizer(read_tokenizer_entries(path)), Tokenizer.from_file(str(reference))


def with_rule_for_digits(text: str) -> dict[str, Any]:
    """Returns transformers' tokenizer.json of SmolLM2 with the rule that transformers leaves out."""
    value: dict[str, Any] = json.loads(text)
    digits = {"type": "Digits", "individual_digits": True}
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, value["pre_tokenizer"]]}
    return value


REAL = [
    pytest.param("smollm2-135m-instruct", marks=pytest.mark.real),
    pytest.param("qwen2.5-coder-0.5b-instruct", marks=pytest.mark.slow),
    pytest.param("qwen2.5-coder-1.5b-instruct", marks=pytest.mark.slow),
    pytest.param("gemma-3-270m", marks=pytest.mark.slow),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", REAL)
def test_a_real_files_tokenizer_is_that_of_its_folder(name: str) -> None:
    built, reference = real_pair(name)

    expected = reference.to_str()
    is_smollm = name.startswith("smollm")
    assert json.loads(built.to_str()) == (with_rule_for_digits(expected) if is_smollm else json.loads(expected))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", REAL)
@given(st.text() | st.text("<|>im_start/endof turn\n", max_size=30) | st.sampled_from(SAMPLES))
def test_a_real_files_tokenizer_gives_the_ids_of_its_folder(name: str, text: str) -> None:
    built, reference = real_pair(name)
    if name.startswith("smollm"):
        reference = smollm()

    ids = built.encode(text).ids

    assert ids == reference.encode(text).ids
    assert built.decode(ids, skip_special_tokens=False) == reference.decode(ids, skip_special_tokens=False)


@cache
def smollm() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(with_rule_for_digits(real_pair("smollm2-135m-instruct")[1].to_str())))


@pytest.mark.parametrize("pre", KNOWN_TO_THE_LIBRARY)
def test_a_byte_level_tokenizer_splits_as_transformers_converts_it(tmp_path: Path, pre: str) -> None:
    path = make_gguf(tmp_path / "model.gguf", pre=pre)

    built = json.loads(build_tokenizer(read_tokenizer_entries(path)).to_str())

    expected = json.loads(library_tokenizer(path).backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert built[part] == expected[part], part
    for part in ("vocab", "merges", "unk_token", "byte_fallback"):
        assert built["model"][part] == expected["model"][part], part


@pytest.mark.fault("F106")
@pytest.mark.parametrize("pre", LIKE_GPT2)
def test_a_rule_that_the_library_ignores_is_gpt2s_with_or_without_digits(tmp_path: Path, pre: str) -> None:
    words = build_tokenizer(read_tokenizer_entries(make_gguf(tmp_path / "model.gguf", pre=pre))).pre_tokenizer

    found = [word for word, _ in words.pre_tokenize_str("it's  12 a34")]

    rest = ["Ġ", "Ġ12", "Ġa", "34"] if pre in ("mpt", "jais", "trillion") else ["ĠĠ", "1", "2", "Ġa", "3", "4"]
    assert found == ["it", "'s", *rest]


def test_a_word_that_is_a_token_ignores_the_merges_of_llama_3(tmp_path: Path) -> None:
    tokens = ["<a>", "<b>", "<c>", "A", "B", "C", "AB", "ABC", "BC"]

    def ids(pre: str) -> list[int]:
        path = make_gguf(tmp_path / f"{pre}.gguf", tokens=tokens, merges=["B C"], pre=pre)
        found: list[int] = build_tokenizer(read_tokenizer_entries(path)).encode("ABC", add_special_tokens=False).ids
        return found

    assert (ids("llama-bpe"), ids("dbrx")) == ([7], [3, 8])


def test_llama_3_begins_with_the_bos_token_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(read_tokenizer_entries(make_gguf(tmp_path / "a.gguf", pre="llama-bpe")))
    other = build_tokenizer(read_tokenizer_entries(make_gguf(tmp_path / "b.gguf", pre="qwen2")))

    assert (tokenizer.encode("A").tokens, other.encode("A").tokens) == (["<|im_start|>", "A"], ["A"])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_a_sentencepiece_tokenizer_equals_transformers_conversion(
    tmp_path: Path, architecture: str, flags: dict[str, bool]
) -> None:
    path = write_sentencepiece(tmp_path / "model.gguf", architecture, **flags)
    built, reference = build_tokenizer(read_tokenizer_entries(path)), library_tokenizer(path).backend_tokenizer

    for text in (*SAMPLES, "ab ab", "  ab", "[USER] ab</s>", "<unk>", "\x00\xff"):
        assert built.encode(text).ids == reference.encode(text).ids, text
        assert built.encode(text, add_special_tokens=False).ids == reference.encode(text, add_special_tokens=False).ids
    ids = list(range(built.get_vocab_size()))
    assert built.decode(ids, skip_special_tokens=False) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.fault("F104")
@pytest.mark.parametrize("architecture", ["phi3", "minicpm", "internlm2", "no-such-model"])
def test_a_table_is_read_whatever_the_architecture(tmp_path: Path, architecture: str) -> None:
    """As in llama.cpp, where the kind of table decides."""
    of_llama = build_tokenizer(read_tokenizer_entries(write_sentencepiece(tmp_path / "llama.gguf", "llama")))
    path = write_sentencepiece(tmp_path / "model.gguf", architecture)

    tokenizer, stages = written(path, tmp_path / "folder")

    assert stages == []
    for text in (*SAMPLES, "ab ab", "  ab", "[USER] ab</s>"):
        assert tokenizer.encode(text) == of_llama.encode(text).ids


def test_no_space_is_put_before_a_text_if_the_file_says_so(tmp_path: Path) -> None:
    path = write_sentencepiece(tmp_path / "model.gguf", "llama", add_space_prefix=False, add_bos_token=False)

    assert build_tokenizer(read_tokenizer_entries(path)).encode("ab").tokens == ["ab"]


def test_a_folder_has_the_template_and_the_names_of_special_tokens(tmp_path: Path) -> None:
    tokenizer, stages = written(make_gguf(tmp_path / "model.gguf"), tmp_path / "folder")

    assert stages == []
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.special_tokens_map == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_a_pre_tokenizer_that_is_not_known_is_left_to_transformers_with_its_name(tmp_path: Path) -> None:
    tokenizer, stages = written(make_gguf(tmp_path / "model.gguf", pre="bloom"), tmp_path / "folder")

    assert tokenizer.encode("AB", add_special_tokens=False) == [3]
    assert len(stages) == 1
    assert "tokenizer.ggml.pre is 'bloom'" in stages[0]


def test_a_merge_that_gives_no_token_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", merges=["C D"])

    with pytest.raises(ModelFileError, match=r"model\.gguf"):
        written(path, tmp_path / "folder")


def test_a_saved_tokenizer_is_read_by_transformers_as_it_is(tmp_path: Path) -> None:
    entries = read_tokenizer_entries(make_gguf(tmp_path / "model.gguf", pre="smollm"))
    built = build_tokenizer(entries)
    save_tokenizer(built, entries, tmp_path)

    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)

    assert json.loads(loaded.backend_tokenizer.to_str()) == json.loads(built.to_str())


def test_a_conversion_does_not_import_transformers(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", pre="qwen2")
    code = (
        "import sys; from pathlib import Path; from specgen.loading.gguf.convert import convert_gguf;"
        "convert_gguf(Path(sys.argv[1])); print('transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(path)]

    result = subprocess.run(
        command, env=environment(SPECGEN_CACHE=str(tmp_path / "cache")), capture_output=True, text=True, check=True
    )

    assert result.stdout == "False\n"
