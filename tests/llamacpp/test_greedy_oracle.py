"""Compares with llama-cpp-python's own greedy generation on the same file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.near_ties import logit_gap
from specgen.models.llama_cpp import PREFILL_CHUNK, LlamaCppModel
from tests.fakes import ids_of, sampler, tiny_model
from tests.llamacpp.builders import letters, load, write_gguf

PROMPTS = ([1, 7, 9], [1, 20, 20, 20, 21, 22], [1, *range(10, 60)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model(), letters(96))


@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "repeating", "long"])
@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.fast("4-long")
def test_the_greedy_text_equals_llama_cpp_pythons_own(path: Path, prompt: list[int], k: int) -> None:
    from llama_cpp import Llama

    settings = {"n_ctx": 256, "n_batch": PREFILL_CHUNK, "n_ubatch": PREFILL_CHUNK, "flash_attn": True}
    theirs = Llama(str(path), n_threads=1, n_threads_batch=1, verbose=False, **settings)
    expected = list(islice(theirs.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1), 40))
    ours = LlamaCppModel(load(path).weights, 96, 256, 1)
    drafter = LookupDrafter() if k else NoDrafter()

    events = list(decode(ours, drafter, prompt, sampler(), DecodeOptions(DecodeSettings(40, k))))
    text = ids_of(events)

    # Weights in float32, but a cache in float16: where they part, rounding must explain it.
    at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=True)) if a != b), None)
    if at is not None:
        assert logit_gap(ours, load(path).info, [*prompt, *expected[:at]], expected[at], text[at]).is_near_tie
