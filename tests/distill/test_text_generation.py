"""Batched generation gives each prompt the text and the features that transformers gives it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specgen.distill.target_texts import TargetText
from specgen.distill.text_generation import BatchGenerator
from tests.decoders import decoder_of
from tests.distill.targets import FAMILIES, make_target
from tests.fakes import assert_close

PROMPTS = [[5, 9, 2, 40, 7], [3], [11, 12, 13, 14, 15, 16, 17, 18, 19], [8, 8], [60, 1, 4, 30]]


def alone(model: Any, prompt: list[int], num_new: int) -> list[int]:
    made = model.generate(torch.tensor([prompt]), max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    return list(made[0].tolist())


def write(model: Any, num_new: int = 20, ends: frozenset[int] = frozenset([1])) -> list[TargetText]:
    generator = BatchGenerator(decoder_of(model), model.config.vocab_size, ends)
    return generator.generate(PROMPTS, [0.0] * len(PROMPTS), num_new, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("Llama")
def test_greedy_texts_of_a_batch_are_transformers_own(family: str) -> None:
    model = make_target(family)

    assert [text.ids.tolist() for text in write(model)] == [alone(model, prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("Llama")
def test_features_are_the_inputs_of_the_head(family: str) -> None:
    model = make_target(family)

    for text in write(model):
        states = model.model(text.ids[None, :-1])
        assert_close(text.features.float(), states.last_hidden_state[0], torch.float16)


def test_texts_in_bfloat16_are_the_targets_up_to_its_rounding() -> None:
    model = make_target()
    generator = BatchGenerator(decoder_of(make_target().bfloat16()), 61, frozenset([1]))

    for text in generator.generate(PROMPTS, [0.0] * len(PROMPTS), 20, seed=0):
        states = model(text.ids[None, :-1], output_hidden_states=True)
        assert_close(text.features.float(), states.hidden_states[-1][0], torch.bfloat16)
        answer = text.ids[text.num_prompt :]
        logits = states.logits[0, text.num_prompt - 1 :]
        gaps = logits.max(-1).values - logits.gather(-1, answer[:, None])[:, 0]
        assert float(gaps.max()) < 0.05 * float(logits.std())


def test_the_scale_of_attention_is_that_of_the_target() -> None:
    model = make_target("Granite", attention_multiplier=0.9)

    assert [text.ids.tolist() for text in write(model)] == [alone(model, prompt, 20) for prompt in PROMPTS]


def test_rows_that_end_leave_the_batch_without_changing_others() -> None:
    model = make_target(seed=3)
    ends = frozenset(range(0, 61, 6))

    written = write(model, 30, ends)

    lengths = [len(text.ids) - text.num_prompt for text in written]
    assert min(lengths) < 8 < max(lengths), "the test needs rows that end early and late"
    for text, prompt in zip(written, PROMPTS, strict=True):
        answer = alone_until(model, prompt, 30, ends)
        assert text.ids.tolist() == answer


def alone_until(model: Any, prompt: list[int], num_new: int, ends: frozenset[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(num_new):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids


def test_sampled_texts_depend_on_the_seed_only() -> None:
    model = make_target()
    generator = BatchGenerator(decoder_of(model), 61, frozenset([1]))

    def draw(seed: int) -> list[list[int]]:
        return [text.ids.tolist() for text in generator.generate(PROMPTS, [1.0] * 5, 12, seed)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_samples_follow_the_distribution_of_the_target() -> None:
    model = make_target()
    generator = BatchGenerator(decoder_of(model), 61, frozenset())
    num_rows, temperature = 4000, 0.8

    texts = generator.generate([[5, 9]] * num_rows, [temperature] * num_rows, 1, seed=0)

    probs = (model(torch.tensor([[5, 9]])).logits[0, -1] / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([text.ids[-1] for text in texts]), minlength=61) / num_rows
    # Five standard deviations of a share at its largest.
    assert float((counts - probs).abs().max()) < 5 * 0.5 / num_rows**0.5
