"""Tests `--same-text`: one seed gives one text with any draft, and still the target's distribution."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from scipy import stats

from specgen.core.settings import SamplingSettings
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import TableModel
from specgen.engine.randomness import PositionNoise, TorchRandomness
from specgen.engine.sampling import Sampler, token_distributions
from tests.engine.test_enumeration import table, target_distribution
from tests.fakes import CPU, cached, ids_of, random_tokens, rounds_of, run_events, tiny_model

SAMPLING = SamplingSettings(temperature=1.0, top_k=40, repetition_penalty=1.1, seed=11, same_text=True)
PROMPT = [1, 17, 40, 17, 40, 9]
NUM_SEEDS = 3000


def noise(seed: int = SAMPLING.seed) -> PositionNoise:
    return PositionNoise(seed, 96)


def sampled(drafter: Drafter, **options: object) -> list[int]:
    settings = {"sampling": SAMPLING, "noise": noise(), "max_new_tokens": 30, **options}
    return ids_of(run_events(cached(tiny_model()), drafter, PROMPT, **settings))


@cache
def plain_text() -> list[int]:
    return sampled(NoDrafter())


def drafter(name: str) -> Drafter:
    if name == "lookup":
        return LookupDrafter()
    if name == "combined":
        return CombinedDrafter(LookupDrafter([PROMPT]), drafter("other"))
    if name == "random":
        return random_tokens(5, 96)
    model = cached(tiny_model(seed=0 if name == "self" else 1))
    return ModelDrafter(model, 96, Sampler(SAMPLING, TorchRandomness(0, CPU), noise()))


@pytest.mark.parametrize("num_draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("name", ["self", "other", "lookup", "combined", "random"])
@pytest.mark.fast("*-3", "other-1", "random-8", "self-8")
def test_one_seed_gives_one_text_with_any_draft(name: str, num_draft_tokens: int) -> None:
    assert sampled(drafter(name), num_draft_tokens=num_draft_tokens) == plain_text()


def test_one_seed_gives_one_text_with_lengths_that_depend_on_the_clock() -> None:
    text = sampled(drafter("other"), draft_length=CostAwareLength(CostTable(), DraftCost()), num_draft_tokens=8)

    assert text == plain_text()


def test_another_seed_gives_another_text() -> None:
    assert sampled(NoDrafter()) != sampled(NoDrafter(), noise=noise(12))


def test_the_target_as_its_own_draft_is_always_accepted() -> None:
    events = run_events(cached(tiny_model()), drafter("self"), PROMPT, sampling=SAMPLING, noise=noise())

    assert all(r.num_accepted == len(r.draft_ids) for r in rounds_of(events))


@pytest.mark.thorough
def test_draws_tied_to_positions_have_the_targets_distribution() -> None:
    logits, sampling = table(3, 1), SamplingSettings(temperature=0.8, same_text=True)
    wanted = target_distribution(logits, sampling, num_tokens=2)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(NUM_SEEDS):
        tied = PositionNoise(seed, 3)
        draft = ModelDrafter(TableModel(table(3, 2)), 3, Sampler(sampling, TorchRandomness(0, CPU), tied))
        events = run_events(
            TableModel(logits), draft, [0, 1], sampling=sampling, noise=tied, max_new_tokens=2, num_draft_tokens=1
        )
        found[tuple(ids_of(events))] += 1

    observed = [found[text] for text in wanted]
    expected = [NUM_SEEDS * probability for probability in wanted.values()]

    assert sum(observed) == NUM_SEEDS
    assert stats.chisquare(observed, expected).pvalue > 1e-6


@pytest.mark.thorough
def test_a_distribution_of_many_tokens_is_drawn_without_an_arbitrary_tail() -> None:
    """150,000 tokens that share one in a million of the mass: in float32 noise they would win one time in a hundred."""
    logits = torch.full((1, 150_000), -26.0)
    logits[0, 7] = 0.0
    sampling = SamplingSettings(temperature=1.0, same_text=True)

    drawn = [
        int(token_distributions(logits, sampling, None, PositionNoise(seed, 150_000).rows(5, 1)).ids)
        for seed in range(400)
    ]

    assert set(drawn) == {7}


@pytest.mark.parametrize("width", [96, 64])
def test_each_row_is_drawn_with_its_own_noise(width: int) -> None:
    torch.manual_seed(width)
    logits, rows = torch.randn(5, width), noise().rows(7, 5)

    drawn = token_distributions(logits, SamplingSettings(temperature=0.7, same_text=True), None, rows).ids

    probs = (logits.double() / 0.7).softmax(dim=-1)
    assert drawn.tolist() == (probs / rows[:, :width]).argmax(dim=-1).tolist()


def test_noise_depends_on_seed_and_position_only() -> None:
    first = PositionNoise(3, 10)
    first.rows(0, 4)

    assert torch.equal(first.rows(2, 1), PositionNoise(3, 10).rows(2, 1))
    assert not torch.equal(first.rows(2, 1), first.rows(3, 1))


def test_noise_on_the_host_is_that_of_a_new_generator_per_position() -> None:
    """Texts of earlier versions stay the same."""
    found = PositionNoise(3, 1000)
    for position in (5, 2, 5):
        mixed = (3 * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        expected = torch.empty(1000, dtype=torch.float64).exponential_(generator=generator)

        # A last digit decides between tokens once in 10^15 positions.
        torch.testing.assert_close(found.rows(position, 1)[0], expected, rtol=5e-16, atol=0)
