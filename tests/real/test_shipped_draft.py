"""The draft that comes with the built-in target: taken by default, small, told of, and never heard in the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specgen.core.draft_name import AUTO_DRAFT
from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.loading.builtin import fetch_builtin
from specgen.loading.config_check import read_config
from specgen.loading.draft_head_folder import check_draft_head
from specgen.loading.libraries import prepare_libraries
from specgen.loading.names import SHIPPED
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate, Message

pytestmark = pytest.mark.real

NUM_TOKENS = 24
PROMPTS = [
    "Why is the sky blue?",
    "Repeat after me, word for word: the cat sat on the mat, the cat sat on the mat.",
    "Schreibe einen Satz über Bäume.",
    "Write a Python function that adds two numbers.",
]
LARGEST_BYTES = 20_000_000

prepare_libraries(verbose=False)


@pytest.fixture(scope="module")
def alone() -> LoadedModels:
    fetch_builtin()
    return load_models(resolve_pair(PairSettings(target(), "none")))


@pytest.fixture(scope="module")
def drafted() -> LoadedModels:
    """What `specgen generate` opens when nothing is asked for but the type and the engine."""
    fetch_builtin()
    return load_models(
        resolve_pair(PairSettings(target()).with_draft(AUTO_DRAFT, ModelSettings("", quant="none", device="cpu")))
    )


def target() -> ModelSettings:
    return ModelSettings("", quant="none", dtype="float32", device="cpu")


def generation(models: LoadedModels, text: str, sampling: SamplingSettings, num_draft_tokens: int) -> Generation:
    ids = ChatTemplate().encode(models.pair.tokenizer, [Message("user", text)])
    limits = DecodeSettings(NUM_TOKENS, num_draft_tokens, end_ids=models.pair.end_ids, strict=True)
    made = Generation(models, Request(ids, limits, sampling))
    for _ in made:
        pass
    return made


def test_auto_takes_it(drafted: LoadedModels) -> None:
    assert drafted.pair.settings.drafter == "model+lookup"
    assert drafted.pair.draft is not None
    assert drafted.pair.draft.path.is_relative_to(SHIPPED)


@pytest.mark.parametrize(("text", "num_draft_tokens"), [*zip(PROMPTS[1:], (5, 5, 1), strict=True)])
def test_the_greedy_text_is_the_targets_own(
    alone: LoadedModels, drafted: LoadedModels, text: str, num_draft_tokens: int
) -> None:
    made = generation(drafted, text, SamplingSettings(), num_draft_tokens)

    assert made.token_ids == generation(alone, text, SamplingSettings(), 0).token_ids
    assert made.counts.num_drafted > made.counts.num_lookup_drafted


def test_one_seed_gives_one_text_with_it_and_without(alone: LoadedModels, drafted: LoadedModels) -> None:
    sampling = SamplingSettings(temperature=0.8, seed=11, same_text=True)

    made = generation(drafted, PROMPTS[1], sampling, 4)

    assert made.token_ids == generation(alone, PROMPTS[1], sampling, 0).token_ids


def test_it_guesses_well(drafted: LoadedModels) -> None:
    """Without lookup beside it, which alone is right wherever one of these texts repeats."""
    assert drafted.pair.draft is not None
    settings = ModelSettings(str(drafted.pair.draft.path), quant="none", device="cpu")
    alone = load_models(resolve_pair(PairSettings(target(), "model", settings)))

    counts = [generation(alone, text, SamplingSettings(), 3).counts for text in PROMPTS]

    tested = sum(count.num_tested for count in counts)
    assert sum(count.num_accepted for count in counts) / tested > 0.3


@pytest.mark.parametrize("folder", sorted(path.parent for path in SHIPPED.glob("*/config.json")), ids=lambda p: p.name)
def test_it_is_small_and_has_a_card(folder: Path) -> None:
    facts: Any = check_draft_head(read_config(folder), folder).draft_head
    card = (folder / "README.md").read_text(encoding="utf-8")

    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST_BYTES
    assert f"# A draft head for {facts.target_name}" in card
    for said in ("## Data", "## Loss", "## Measured", "## Settings", '"seed"'):
        assert said in card
