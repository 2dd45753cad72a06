"""Tokenizers, end ids and sampling defaults of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from specgen.core.errors import ModelFileError, PairError
from specgen.core.model_files import read_json, read_optional_json
from specgen.loading.config_check import check_folder
from specgen.text.generation_config import end_ids
from specgen.text.tokenizer import check_num_rows, fit_tokenizer, load_tokenizer
from specgen.text.vocabulary import table_size
from tests.loading.builders import edit_json, fails, make_folder, make_tokenizer, words


def write_defaults(folder: Path, **values: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_a_tokenizer_is_loaded(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)

    assert tokenizer.encode("w0 w1") == [3, 4]


@pytest.mark.fault("F28")
def test_a_missing_tokenizer_is_an_error(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()

    fails(ModelFileError, lambda: load_tokenizer(folder), str(folder), "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"model": 7}', b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_an_error(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)

    fails(ModelFileError, lambda: load_tokenizer(folder), str(folder))


def test_a_tokenizer_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)

    fails(ModelFileError, lambda: load_tokenizer(folder), "64 MiB")


@pytest.mark.parametrize(
    "name",
    [
        *("vocab.json", "vocab.bpe", "merges.txt", "added_tokens.json", "special_tokens_map.json", "qwen.tiktoken"),
        *("tokenizer_config.json", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
        "additional_chat_templates/tools.jinja",
    ],
)
def test_no_other_file_of_a_tokenizer_is_read_if_it_is_too_large(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(2**30)

    fails(ModelFileError, lambda: load_tokenizer(folder), name, "64 MiB")


def test_large_files_that_a_tokenizer_does_not_read_are_ignored(folder: Path) -> None:
    with (folder / "training_log.json").open("wb") as file:
        file.truncate(2**30)

    assert load_tokenizer(folder).encode("w0 w1") == [3, 4]


def test_a_tokenizer_that_needs_its_own_code_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    (folder / "tokenizer.json").rename(folder / "vocab.json")

    fails(ModelFileError, lambda: load_tokenizer(folder), "Evil")


@pytest.mark.fault("F105")
def test_a_tokenizer_in_python_only_is_refused_where_it_is_loaded(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    tokens = ["<unk>", *(f"{letter}@@" for letter in "helo"), *"helo", "hello"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nhe l\nhel l\nhell o</w>\n")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="CTRLTokenizer", unk_token="<unk>")

    error = fails(ModelFileError, lambda: load_tokenizer(folder), "CTRLTokenizer", str(folder))

    assert (error.code, error.exit_code) == ("model_file", 3)


def test_a_tokenizer_json_needs_no_class_of_its_config(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})

    assert load_tokenizer(folder).encode("w0 w1") == [3, 4]


@pytest.mark.fault("F28")
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", tokens=words(80))

    error = fails(
        PairError,
        lambda: check_num_rows(table_size(load_tokenizer(folder)), check_folder(folder).vocab_rows, folder),
        "79",
        "64",
    )
    assert error.exit_code == 4


def add_tokens(folder: Path, *contents: str) -> None:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(list(contents))
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.fault("F101")
def test_an_added_token_beyond_the_embeddings_is_dropped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", tokens=words(64))
    plain = load_tokenizer(folder)
    add_tokens(folder, "<pad>")
    edit_json(folder / "tokenizer_config.json", pad_token="<pad>")
    assert load_tokenizer(folder).encode("w0 <pad>")[-1] == 64

    tokenizer, notice = fit_tokenizer(load_tokenizer(folder), 64, folder)

    assert tokenizer.encode("w0 <pad>") == plain.encode("w0 <pad>")
    assert table_size(tokenizer) == 64
    assert "pad_token" not in tokenizer.special_tokens_map
    assert notice is not None
    assert "'<pad>' (64)" in notice


@pytest.mark.fault("F101")
def test_a_tokenizer_that_fits_is_left_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", tokens=words(60))
    tokenizer = load_tokenizer(folder)

    assert fit_tokenizer(tokenizer, 64, folder) == (tokenizer, None)
    assert fit_tokenizer(tokenizer, None, folder) == (tokenizer, None)


@pytest.mark.fault("F101")
@pytest.mark.parametrize("added", [["<end>"], [f"<{index}>" for index in range(9)]])
def test_more_than_unused_tokens_beyond_the_embeddings_are_refused(tmp_path: Path, added: list[str]) -> None:
    folder = make_folder(tmp_path / "tiny", tokens=words(64))
    add_tokens(folder, *added)
    edit_json(folder / "tokenizer_config.json", eos_token="<end>")

    fails(PairError, lambda: fit_tokenizer(load_tokenizer(folder), 64, folder), str(63 + len(added)), "64")


def test_a_padded_model_is_accepted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", tokens=words(60))

    check_num_rows(table_size(load_tokenizer(folder)), check_folder(folder).vocab_rows, folder)


def ends_of(folder: Path, tokenizer: Any) -> frozenset[int]:
    return end_ids(tokenizer, read_optional_json(folder / "generation_config.json"), read_json(folder / "config.json"))


@pytest.mark.parametrize(
    ("eos_token_id", "expected"),
    [
        (7, {1, 7}),
        ([7, 8], {1, 7, 8}),
        ([1], {1}),
        (None, {1, 5}),
        (-1, {1, 5}),
        ("x", {1, 5}),
    ],
)
def test_all_end_tokens_of_the_model_end_a_text(folder: Path, eos_token_id: object, expected: set[int]) -> None:
    write_defaults(folder, eos_token_id=eos_token_id)
    edit_json(folder / "config.json", eos_token_id=5)

    assert ends_of(folder, load_tokenizer(folder)) == expected


def test_a_model_without_an_end_token_has_none(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=None)

    assert ends_of(folder, make_tokenizer(eos_token=None)) == frozenset()


@pytest.mark.fault("F99")
@pytest.mark.parametrize("has_file", [True, False])
def test_the_template_of_a_processor_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    if not has_file:
        (folder / "tokenizer.json").rename(folder / "vocab.json")
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)

    assert load_tokenizer(folder).chat_template == "{{ messages }}"
