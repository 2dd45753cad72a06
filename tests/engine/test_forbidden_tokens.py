"""Checks the tokens that a checkpoint forbids against transformers' own logits processors, with any draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.settings import SamplingSettings, TokenRules
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.forbidden_tokens import ForbiddenTokens
from tests.fakes import always_wrong, cached, ids_of, oracle, random_tokens, run_events, sampler, tiny_model
from tests.profiles import thorough_except

VOCAB, END, NUM_NEW = 96, 2, 40
PROMPT = [3, 4, 5, 3, 4]
FREE = {"max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": 0}
RULES = {
    "suppress_tokens": {"suppress_tokens": list(range(10, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(60))},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(0, 90, 3)] + [[2], [1, 7], [3, 4, 8], [5]]},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3, "suppress_tokens": list(range(5, VOCAB))},
    "min_new_tokens": {"min_new_tokens": 25},
    "min_length": {"min_length": 20},
    "sequence_bias": {"sequence_bias": [[[token], 0.5 * (token % 7)] for token in range(3, 90)] + [[[2], -9.0]]},
    "sequence_bias of several tokens": {"sequence_bias": [[[a, b], 4.0] for a in range(3, 90, 2) for b in (a + 1, 5)]},
    "biases and penalties": {"sequence_bias": [[[9], 3.0], [[9, 9], -20.0], [[3, 4, 9], 2.0]], "suppress_tokens": [11]},
    "all": {"suppress_tokens": [9, 11], "no_repeat_ngram_size": 2, "min_new_tokens": 9, "bad_words_ids": [[7, 8]]},
}
DIFFERENT = ("begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size 2", "min_length", "all")
"""Rules whose tokens are found in ways of their own."""


@pytest.mark.fault("F96")
@pytest.mark.parametrize("prompt", [[7], [7, 8]])
def test_a_forced_first_token_follows_a_text_of_one_token(prompt: list[int]) -> None:
    rules, model = TokenRules(forced_bos_token_id=41), tiny_model()
    with torch.inference_mode():
        expected = model.generate(torch.tensor([prompt]), **FREE, forced_bos_token_id=41, eos_token_id=None)  # type: ignore[operator]
    expected = expected[0, len(prompt) :].tolist()
    assert (expected[0] == 41) == (len(prompt) == 1)

    for drafter in (NoDrafter(), always_wrong(expected, len(prompt), VOCAB), oracle(expected, len(prompt))):
        events = run_events(cached(model, VOCAB), drafter, prompt, max_new_tokens=NUM_NEW, rules=rules)
        assert ids_of(events) == expected


def rules_of(values: dict[str, Any], ends: frozenset[int]) -> TokenRules:
    words = tuple(tuple(word) for word in values.get("bad_words_ids", ()) if not (len(word) == 1 and word[0] in ends))
    sets = {key: frozenset(value) for key, value in values.items() if key.endswith("suppress_tokens")}
    biases = tuple((tuple(ids), float(bias)) for ids, bias in values.get("sequence_bias", ()))
    return TokenRules(**{**values, **sets, "bad_words_ids": words, "end_ids": ends, "sequence_bias": biases})


def ends_of(values: dict[str, Any]) -> frozenset[int]:
    """Returns the ends of the text: where a shortest length is to matter, tokens that the model would soon write."""
    return frozenset({END, *generated({}, [])[4:8]} if "min_new_tokens" in values or "min_length" in values else {END})


def generated(values: dict[str, Any], ends: Sequence[int]) -> list[int]:
    model: Any = tiny_model()
    with torch.inference_mode():
        output = model.generate(torch.tensor([PROMPT]), **FREE, **values, eos_token_id=list(ends) or None)
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.fault("F96")
@pytest.mark.parametrize("name", thorough_except(DIFFERENT, RULES))
@pytest.mark.fast("all", "min_length")
def test_the_text_is_that_of_generate_with_any_draft(name: str) -> None:
    ends = ends_of(RULES[name])
    expected, rules = generated(RULES[name], sorted(ends)), rules_of(RULES[name], ends)
    assert expected != generated({}, sorted(ends)), "the rule has no effect"
    target, draft = cached(tiny_model(), VOCAB), cached(tiny_model(seed=1), VOCAB)

    for drafter in (
        NoDrafter(),
        LookupDrafter(),
        oracle(expected, len(PROMPT)),
        always_wrong([*expected, *[0] * NUM_NEW], len(PROMPT), VOCAB),
        ModelDrafter(draft, VOCAB, sampler()),
    ):
        target.reset()
        events = run_events(target, drafter, PROMPT, max_new_tokens=NUM_NEW, end_ids=ends, rules=rules)
        assert ids_of(events) == expected


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    drafted=st.lists(st.integers(0, 5), max_size=6),
    size=st.integers(1, 4),
    words=st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=3), max_size=4),
)
def test_a_row_of_a_draft_forbids_what_its_text_forbids(
    ids: list[int], drafted: list[int], size: int, words: list[list[int]]
) -> None:
    rules = TokenRules(
        bad_words_ids=tuple(map(tuple, words)),
        no_repeat_ngram_size=size,
        begin_suppress_tokens=frozenset({1}),
        sequence_bias=tuple((tuple(word), 0.5 + index) for index, word in enumerate(words)),
    )
    logits = torch.zeros(len(drafted) + 1, 6)

    together = ForbiddenTokens(rules, 3).remove(logits, ids, drafted)

    alone = [ForbiddenTokens(rules, 3).remove(logits[:1], [*ids, *drafted[:n]], [])[0] for n in range(len(drafted) + 1)]
    assert torch.equal(together, torch.stack(alone))
    assert not logits.any()


@pytest.mark.fault("F96")
def test_a_sampled_text_has_no_forbidden_token() -> None:
    rules = TokenRules(suppress_tokens=frozenset(range(3, 90)), bad_words_ids=((1,), (200,)))
    events = run_events(
        cached(tiny_model(), VOCAB),
        random_tokens(0, VOCAB),
        PROMPT,
        sampling=SamplingSettings(temperature=5.0),
        rules=rules,
    )

    assert set(ids_of(events)) <= {0, 2, *range(90, 96)}
