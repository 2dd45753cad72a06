"""Every decoder architecture of transformers, as a tiny random model: the text is that of `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from specgen.core.errors import LoadError
from specgen.core.settings import ModelSettings
from specgen.loading.weights import load_weights
from specgen.models import cached_model
from specgen.models.cached_model import CachedModel
from specgen.text.tokenizer import load_tokenizer
from tests.architectures import BROKEN, MODEL_TYPES, REFUSED, UNBUILT, WINDOW, build_folder
from tests.generate_oracle import differences, generated_ids
from tests.loading.builders import resolved
from tests.toys import toy_tokenizer

NUM_NEW = 60
CHUNK = 32
PROMPT_LENGTHS = (10, 80)
"""One shorter than the window and the chunk, one longer than both."""
TEXTS = ("The cat sat on the mat.", "  if x:\n\n\treturn  2023", " Grüße, 你好 \U0001f600", "<|im_start|>user\n<s></s>")


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_model, "PREFILL_CHUNK", CHUNK)


def load(folder: Path) -> CachedModel:
    """Loads a folder as the program does."""
    found = resolved(folder, ModelSettings(str(folder), dtype="float32", quant="none"))
    model = load_weights(found, found.config.vocab_rows or 0).model
    assert isinstance(model, CachedModel)
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = len(toy_tokenizer())
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@pytest.mark.slow
@pytest.mark.fault("F145")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_architecture_writes_the_text_of_generate(model_type: str, tmp_path: Path, short_chunks: None) -> None:
    if model_type in UNBUILT:
        pytest.skip(UNBUILT[model_type])
    build_folder(model_type, tmp_path / "target")
    build_folder(model_type, tmp_path / "draft", noise=0.1)
    try:
        target, draft = load(tmp_path / "target"), load(tmp_path / "draft")
    except LoadError as error:
        if model_type not in {**REFUSED, **BROKEN}:
            raise
        pytest.skip(str(error))
    assert model_type not in BROKEN, "this type loads now: remove it from BROKEN"

    auto_model: Any = transformers.AutoModelForCausalLM
    reference = auto_model.from_pretrained(tmp_path / "target", dtype=torch.float32).eval()

    tokenizer, file = load_tokenizer(tmp_path / "target"), Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    assert [tokenizer.encode(text) for text in TEXTS] == [file.encode(text).ids for text in TEXTS]
    assert min(PROMPT_LENGTHS) < min(WINDOW, CHUNK) < max(WINDOW, CHUNK) < max(PROMPT_LENGTHS)
    for prompt in prompts():
        expected = generated_ids(reference, prompt, NUM_NEW)
        assert differences(target, draft, prompt, expected) == []
