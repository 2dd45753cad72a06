"""The tokenizer of a tokenizer.json: ids are those of the `tokenizers` package, whatever the config's class makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from specgen.core.errors import ModelFileError, SettingsError
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.tokenizer import load_tokenizer
from specgen.text.tokenizer_file import Tokenizer, read_tokenizer_file
from specgen.text.vocabulary import compare_tokenizers
from tests.loading.builders import fails, make_tokenizer
from tests.real_models import real_model

REAL = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct", "gemma-3-270m")
TEXTS = (
    "x  1",
    "a  2023",
    "",
    " ",
    "\n",
    "a\n\n\nb\n \n",
    "    def f(x):\n\t\treturn  x   + 10",
    "日本語のテキスト、中文，한국어",
    "👍🏽 👩‍👩‍👧 🇩🇪",
    "it's we'll 3.14 1,000,000 ½ ①",
    "<|im_start|>user\nhi<|im_end|>",
    "e\u0301 é \u200b \u00a0 \ufeff",
    "\x00\x01\x7f",
)


def byte_level_folder(folder: Path, **config: Any) -> Path:
    """Writes a byte-level tokenizer that separates every digit, with a config that names GPT-2's class."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("2", "0"), ("20", "2"), ("Ġ", "1"), ("Ġ", "Ġ"), ("a", "b"), ("Ġ", "2")]
    tokens = [*alphabet, *(first + second for first, second in merges)]
    backend = Backend(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    write_config(folder, tokenizer_class="GPT2Tokenizer", eos_token="<|im_end|>", **config)
    return folder


def write_config(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return byte_level_folder(tmp_path / "digits")


@pytest.mark.fault("F108")
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_the_file(digits: Path, text: str) -> None:
    tokenizer, backend = load_tokenizer(digits), Backend.from_file(str(digits / "tokenizer.json"))

    for special in (False, True):
        ids = backend.encode(text, add_special_tokens=special).ids
        assert tokenizer.encode(text, add_special_tokens=special) == ids
    for skip in (False, True):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.fault("F108")
@given(text=st.text(max_size=30))
def test_ids_of_any_text_are_those_of_the_file(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-text"
    if not folder.exists():
        byte_level_folder(folder)

    assert load_tokenizer(folder).encode(text) == Backend.from_file(str(folder / "tokenizer.json")).encode(text).ids


def test_transformers_builds_another_tokenizer_of_the_same_folder(digits: Path) -> None:
    """The reason why the file is read without it."""
    rebuilt = AutoTokenizer.from_pretrained(digits)

    assert rebuilt.encode("a  2023") != load_tokenizer(digits).encode("a  2023")


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_ids_of_a_real_tokenizer_are_those_of_its_file(name: str) -> None:
    folder = real_model(name)
    tokenizer, backend = load_tokenizer(folder), Backend.from_file(str(folder / "tokenizer.json"))

    assert type(tokenizer) is Tokenizer
    for text in (*TEXTS, " ".join(TEXTS)):
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == backend.encode(text, add_special_tokens=False).ids


def test_padding_and_truncation_of_the_file_are_off(digits: Path) -> None:
    backend = Backend.from_file(str(digits / "tokenizer.json"))
    expected = backend.encode("abcdefgh").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(digits / "tokenizer.json"))

    assert load_tokenizer(digits).encode("abcdefgh") == expected


def test_the_files_post_processor_adds_its_special_tokens(digits: Path) -> None:
    backend = Backend.from_file(str(digits / "tokenizer.json"))
    start = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    backend.save(str(digits / "tokenizer.json"))
    tokenizer = load_tokenizer(digits)

    assert tokenizer.encode("a")[0] == start
    assert start not in tokenizer.encode("a", add_special_tokens=False)


def test_added_tokens_and_their_ids_are_known(digits: Path) -> None:
    tokenizer, backend = load_tokenizer(digits), Backend.from_file(str(digits / "tokenizer.json"))

    assert tokenizer.get_vocab() == backend.get_vocab(with_added_tokens=True)
    assert {token.content for token in tokenizer.added_tokens_decoder.values()} == {
        "<|im_start|>",
        "<|im_end|>",
        "<tool>",
    }
    end = backend.token_to_id("<|im_end|>")
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (end, None, None)
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(10**6) is None


AS_OBJECT = {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False, "special": True}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"bos_token": "<|im_start|>"}, {"bos_token": "<|im_start|>"}),
        ({"bos_token": AS_OBJECT}, {"bos_token": "<|im_start|>"}),
        ({"bos_token": None}, {}),
        ({"bos_token": 7}, {}),
        ({"bos_token": {"content": 7}}, {}),
        ({"extra_special_tokens": {"image_token": "<tool>"}}, {"image_token": "<tool>"}),
        ({"add_bos_token": True}, {}),
    ],
)
def test_special_tokens_are_read_from_strings_and_objects(
    digits: Path, config: dict[str, Any], names: dict[str, str]
) -> None:
    write_config(digits, **config)

    assert load_tokenizer(digits).special_tokens_map == names


@pytest.mark.parametrize("form", ["<|im_start|>", AS_OBJECT])
def test_special_tokens_are_read_from_their_own_file(digits: Path, form: Any) -> None:
    (digits / "special_tokens_map.json").write_text(json.dumps({"bos_token": form, "eos_token": "<tool>"}))

    tokenizer = load_tokenizer(digits)

    # The config's own entry has priority.
    assert tokenizer.special_tokens_map == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.bos_token_id == tokenizer.get_vocab()["<|im_start|>"]


def test_a_folder_without_a_config_has_a_tokenizer(digits: Path) -> None:
    (digits / "tokenizer_config.json").unlink()

    tokenizer = load_tokenizer(digits)

    assert (tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.eos_token_id) == ({}, None, None)


PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
NAMED = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ messages[0].content }}"}]


@pytest.mark.parametrize(
    ("config", "files", "template"),
    [
        ({}, {}, None),
        ({"chat_template": "a"}, {}, "a"),
        ({"chat_template": NAMED}, {}, NAMED[1]["template"]),
        ({"chat_template": NAMED[:1]}, {}, None),
        ({"chat_template": "a"}, {"chat_template.jinja": "b\n"}, "b\n"),
        ({"chat_template": NAMED}, {"chat_template.jinja": "b"}, "b"),
        ({}, {"chat_template.json": json.dumps({"chat_template": "c"})}, "c"),
        ({"chat_template": "a"}, {"chat_template.json": json.dumps({"chat_template": "c"})}, "a"),
        ({}, {"processor_config.json": json.dumps({"chat_template": "p"})}, "p"),
        ({}, {name: json.dumps({"chat_template": name[0]}) for name in PROCESSOR_FILES}, "c"),
        ({"chat_template": 7}, {}, None),
    ],
)
def test_the_template_is_that_of_the_folder(
    digits: Path, config: dict[str, Any], files: dict[str, str], template: str | None
) -> None:
    write_config(digits, **config)
    for name, content in files.items():
        (digits / name).write_text(content)

    assert load_tokenizer(digits).chat_template == template


@pytest.mark.parametrize("config", [{"chat_template": NAMED}, {"chat_template": "{{ eos_token }}x{{ bos_token }}"}])
def test_a_conversation_is_rendered_as_by_transformers(digits: Path, config: dict[str, Any]) -> None:
    write_config(digits, tokenizer_class="PreTrainedTokenizerFast", eos_token="<|im_end|>", **config)
    messages = [{"role": "user", "content": "hi"}]
    options = {"tokenize": False, "add_generation_prompt": True}

    ours, theirs = (
        tokenizer.apply_chat_template(messages, **options)
        for tokenizer in (load_tokenizer(digits), AutoTokenizer.from_pretrained(digits))
    )

    assert ours == theirs


def test_damaged_lists_of_templates_are_ignored(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": [{"name": ["x"], "template": "t"}, 3]}))

    assert read_tokenizer_file(tmp_path).chat_template is None


def test_the_end_token_of_two_files_is_compared_by_name(tmp_path: Path) -> None:
    for name, token in (("target", "<|im_end|>"), ("draft", "<unk>")):
        make_tokenizer(eos_token=token).save_pretrained(tmp_path / name)

    pairing = compare_tokenizers(*(read_tokenizer_file(tmp_path / name) for name in ("target", "draft")))

    assert pairing.notice is not None
    assert "('<unk>')" in pairing.notice
    assert "('<|im_end|>')" in pairing.notice


@pytest.mark.fault("F162")
@pytest.mark.parametrize(
    "templates",
    [
        {"default": "A", "tool_use": "B"},
        [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}],
    ],
)
def test_of_several_templates_the_default_is_used(tmp_path: Path, templates: object) -> None:
    folder = byte_level_folder(tmp_path, chat_template=templates)

    assert load_tokenizer(folder).chat_template == "A"


@pytest.mark.fault("F162")
def test_without_a_default_the_named_templates_are_listed(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, chat_template={"rag": "A", "tool_use": "B"})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/vision.jinja").write_text("C")
    tokenizer = load_tokenizer(folder)

    fails(SettingsError, lambda: ChatTemplate().encode(tokenizer, [Message("user", "hi")]), "rag, tool_use, vision")
    fails(SettingsError, lambda: ChatTemplate().check(tokenizer, "model"), "rag, tool_use, vision")


@pytest.mark.fault("F163")
def test_a_byte_order_mark_is_not_part_of_a_file(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("A")
    expected = load_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())

    found = load_tokenizer(folder)

    assert found.get_vocab() == expected.get_vocab()
    assert found.chat_template == "A"


@pytest.mark.fault("F163")
@pytest.mark.parametrize("change", [{"version": "2.0"}, {"model": {"type": "Newer"}}])
def test_a_tokenizer_of_a_newer_package_names_the_package(tmp_path: Path, change: dict[str, Any]) -> None:
    path = byte_level_folder(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    error = fails(ModelFileError, lambda: load_tokenizer(tmp_path), "tokenizer.json")

    assert "tokenizers" in (error.hint or "")


@pytest.mark.fault("F160")
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid", b"<!DOCTYPE html><html>"])
def test_a_template_that_is_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_bytes(content)

    fails(ModelFileError, lambda: load_tokenizer(folder), "chat_template.jinja")
