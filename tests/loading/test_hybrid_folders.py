"""Folders of hybrids: loaded as any other, with logits of transformers' own code, also after a rejected draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specgen.core.settings import ModelSettings
from specgen.loading.load import load
from specgen.loading.resolve import find_files, resolve
from specgen.models.transformers_model import TransformersModel
from tests.fakes import assert_close
from tests.hybrids import hybrid_model, save_hybrid
from tests.toys import toy_tokenizer


@pytest.mark.parametrize("kind", ["Lfm2", "Qwen3_5", "FalconH1"])
def test_a_hybrid_folder_gives_the_logits_of_its_weights(kind: str, tmp_path: Path) -> None:
    num_tokens = len(toy_tokenizer())
    settings = ModelSettings(str(save_hybrid(kind, tmp_path)), quant="none", dtype="float32")
    text, rejected = [5, 6, 7, 8, 9, 10], [20, 21, 22]

    model = load(resolve(find_files(settings), settings, "target"), num_tokens).model
    assert isinstance(model, TransformersModel)
    model.feed(text[:4])
    model.logits([*text[:5], *rejected], len(rejected))
    model.rewind(5)
    found = model.logits(text, 1)[0]

    with torch.inference_mode():
        expected = hybrid_model(kind, num_tokens)(torch.tensor([text])).logits[0, -1]
    assert_close(found, expected)
