"""Tokenizer files of Mistral's that were converted with the rule of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from specgen.text.tokenizer import load_tokenizer
from specgen.text.tokenizer_file import RIGHT_SPLIT, WRONG_SPLIT


def write_folder(folder: Path, rule: str, *, marks: tuple[str, ...] = ("[INST]",), **config: Any) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("o", "W")]
    backend = Backend(models.BPE({t: i for i, t in enumerate([*alphabet, "12", "123", "oW"])}, merges))
    split = pre_tokenizers.Split(Regex(rule), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.add_special_tokens(list(marks))
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mistral", "transformers_version": "4.57.1", **config})
    )
    return folder


@pytest.mark.fault("F110")
def test_the_known_wrong_split_of_mistral_is_mended(tmp_path: Path) -> None:
    wrong = load_tokenizer(write_folder(tmp_path / "wrong", WRONG_SPLIT))
    right = load_tokenizer(write_folder(tmp_path / "right", RIGHT_SPLIT))

    assert right.encode("123 oWo") == wrong.encode("123 oWo")
    assert len(wrong.encode("123")) == 3
    assert (wrong.notice is None, right.notice) == (False, None)


@pytest.mark.fault("F110")
@pytest.mark.parametrize(
    "changes",
    [{"transformers_version": "5.0.0"}, {"model_type": "llama"}, {"marks": ()}],
)
def test_a_split_that_its_maker_chose_is_left_as_it_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "other", WRONG_SPLIT, **changes))

    assert len(tokenizer.encode("123")) == 1
    # A model of Mistral's type with a foreign vocabulary may be right: only its user knows.
    assert (tokenizer.notice is not None) == ("marks" in changes)


@pytest.mark.fault("F110")
def test_a_model_without_a_split_has_no_notice(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", WRONG_SPLIT)
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**state, "pre_tokenizer": None}))

    assert load_tokenizer(folder).notice is None
