"""Real models in float32: our decoder's logits and greedy text against transformers' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from specgen.core.settings import ModelSettings
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.loading.libraries import prepare_libraries
from specgen.loading.weights import load_weights
from specgen.models.decoder_model import DecoderModel
from specgen.text.tokenizer import load_tokenizer
from tests.fakes import always_wrong, ids_of, oracle, run_events
from tests.loading.builders import resolved
from tests.real_models import real_model

NAMES = [
    "smollm2-135m-instruct",
    "gemma-3-270m",
    pytest.param("qwen2.5-coder-0.5b-instruct", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]
TEXT = (
    "The harbour keeps a list of every ship, its cargo and its captain. 日本語 ×3\n\n"
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return"
)
NUM_TOKENS = 24
LARGEST_ERROR = 1e-5
"""Of logits in float32, relative to their norm."""

pytestmark = pytest.mark.real

prepare_libraries(verbose=False)


@dataclass
class Both:
    """A model twice, with the ids of a text.

    Args:
        ours: Our decoder.
        theirs: The transformers model.
        ids: The text.
    """

    ours: DecoderModel
    theirs: Any
    ids: list[int]


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest) -> Both:
    from transformers import AutoModelForCausalLM

    folder = real_model(request.param)
    settings = ModelSettings(str(folder), "none", "float32", "cpu")
    ours = load_weights(resolved(folder, settings), 10**9).model
    assert isinstance(ours, DecoderModel)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return Both(ours, theirs, load_tokenizer(folder).encode(TEXT))


@torch.inference_mode()
def test_logits_equal_transformers(both: Both) -> None:
    expected = both.theirs(torch.tensor([both.ids])).logits[0]
    both.ours.reset()

    logits = both.ours.logits(both.ids, len(both.ids))

    assert float((logits - expected).norm() / expected.norm()) <= LARGEST_ERROR
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


# `test_smollm2` compares the texts of the first one, with more drafters.
@pytest.mark.parametrize("both", NAMES[1:], indirect=True)
def test_greedy_text_equals_generate_with_any_drafter(both: Both) -> None:
    made = both.theirs.generate(
        torch.tensor([both.ids]),
        attention_mask=torch.ones(1, len(both.ids), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    expected = made[0, len(both.ids) :].tolist()
    num_prompt, size = len(both.ids), both.ours.num_embeddings
    drafters = [NoDrafter(), LookupDrafter(), oracle(expected, num_prompt), always_wrong(expected, num_prompt, size)]

    for drafter in drafters:
        both.ours.reset()
        assert ids_of(run_events(both.ours, drafter, both.ids, max_new_tokens=NUM_TOKENS)) == expected
