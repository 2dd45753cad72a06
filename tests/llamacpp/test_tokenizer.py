"""One GGUF, one set of ids: the tokenizer built from a header splits text as llama.cpp does, which runs the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.gguf.tokenizer_entries import read_tokenizer_entries
from specgen.loading.gguf.tokenizer_model import _SPLITTINGS, build_tokenizer
from specgen.loading.resolve import find_files, resolve
from tests.loading.builders import make_folder, make_gguf, words

TEXTS = (
    "x  1",
    "a  2023 3.14159",
    "    def f(x):\n\t\treturn  x   + 10",
    "it's we'll I'M 1,000,000 ½ ①",
    "日本語、中文，한국어",
    "HelloWorld fooBar/baz\n\n\n  \n",
    "e\u0301 é \u200b \u00a0",
    " 'S 're\r\n//// ///\n",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Each joins characters that some rule keeps apart.
MERGES = (
    "1 2",
    "2 0",
    "20 2",
    "0 0",
    "Ġ Ġ",
    "Ġ 1",
    "ĠĠ 1",
    "Ġ a",
    "' s",
    "' S",
    "Ċ Ċ",
    "/ /",
    "Ċ /",
    "l o",
    "o W",
    "o B",
)


def byte_level_gguf(path: Path, pre: str) -> Path:
    merged = [merge.replace(" ", "") for merge in MERGES]
    return make_gguf(
        path, tokens=[*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged], merges=MERGES, pre=pre
    )


# Without a name, llama.cpp warns and splits by a rule of its own; transformers, as GPT-2.
@pytest.mark.fault("F104", "F106")
@pytest.mark.parametrize("pre", sorted(_SPLITTINGS.keys() - {"default"}))
@pytest.mark.fast("qwen2", "llama-bpe", "gpt-4o", "tekken", "smollm")
def test_text_is_split_as_llama_cpp_splits_it(tmp_path: Path, pre: str) -> None:
    import llama_cpp

    path = byte_level_gguf(tmp_path / "model.gguf", pre)
    built = build_tokenizer(read_tokenizer_entries(path))
    library = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    for text in TEXTS:
        ids = built.encode(text, add_special_tokens=False).ids
        assert ids == library.tokenize(text.encode(), add_bos=False, special=True), text


@pytest.mark.fault("F107")
@pytest.mark.parametrize("backend", ["torch", "llama.cpp"])
@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.fast("*-torch", "True-*")
def test_a_gguf_does_not_take_the_tokenizer_of_its_neighbours(tmp_path: Path, backend: str, has_table: bool) -> None:
    own, shared = tmp_path / "own", make_folder(tmp_path / "shared", tokens=words(40))
    own.mkdir()
    (shared / "chat_template.jinja").write_text("of another model")
    if not has_table:
        (shared / "tokenizer.json").unlink()
    alone = byte_level_gguf(own / "model.gguf", "smollm")
    shutil.copyfile(alone, shared / "model.gguf")

    tokenizers = []
    for path in (shared / "model.gguf", alone):
        settings = ModelSettings(str(path), backend=BackendSettings(backend))
        tokenizers.append(resolve(find_files(settings), settings, "target").tokenizer)

    beside, expected = tokenizers
    assert beside.get_vocab() == expected.get_vocab()
    assert [beside.encode(text) for text in TEXTS] == [expected.encode(text) for text in TEXTS]
    assert beside.chat_template == expected.chat_template != "of another model"
