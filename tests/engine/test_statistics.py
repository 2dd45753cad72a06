"""Tests the loop with the real generator against exactly known distributions: χ², S1 to S7, fixed seeds, α = 1e-6.

Enumeration (`test_enumeration.py`) proves the rule; these catch what it can't see: a generator that repeats itself,
one uniform used twice, rounding. A seed that passes goes on passing, so there is nothing to retry. Cells expected to
hold fewer than 5 are merged before anything was drawn. `pytest -m slow tests/engine/test_statistics.py` draws ten times
as much. Which bugs these tests see is shown in `test_planted_bugs.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from specgen.core.events import Round
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import Drafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import TableModel
from specgen.engine.randomness import TorchRandomness, accepted, drawn
from specgen.engine.sampling import Sampler, token_distributions
from specgen.engine.seen_tokens import SeenTokens
from specgen.engine.verification import Draft, acceptance_probabilities, residual_distribution
from tests.engine.distributions import distributions_made_once
from tests.engine.test_enumeration import table, target_distribution
from tests.fakes import CPU, ScriptedDrafter, cached, random_tokens, rounds_of, run_events, sampler, tiny_model

ALPHA = 1e-6
PLAIN = SamplingSettings(temperature=1.0)
FEW, MANY = 2_000, pytest.param(50_000, marks=pytest.mark.slow)
NUM_LOOKS = 5
FEW_TEXTS, FEW_STEPS = {1: 1_000, 2: 1_000, 3: 2_500, 4: 1_000}, 2_000
"""Of S2, by the number of draft tokens, and of S6: what shows the planted bugs with a p-value far below `ALPHA`."""


def p_value(counts: Sequence[float], probs: Sequence[float]) -> float:
    """Pearson's χ² of counts against a known distribution; cells of expectation below 5 are merged into one."""
    total = sum(counts)
    assert abs(sum(probs) - 1) < 1e-9
    pairs = [(count, total * prob) for count, prob in zip(counts, probs, strict=True)]
    assert all(count == 0 for count, expected in pairs if expected == 0), "something impossible was drawn"
    kept = [pair for pair in pairs if pair[1] >= 5]
    rest = [pair for pair in pairs if pair[1] < 5]
    if rest and (merged := (sum(c for c, _ in rest), sum(e for _, e in rest)))[1] > 0:
        kept.append(merged)
    if len(kept) < 2:
        return 1.0
    return float(stats.chisquare([c for c, _ in kept], [e for _, e in kept]).pvalue)


def first_tokens(
    count: int, wanted: int, target: Tensor, draft: Tensor, sampling: SamplingSettings, seed: int, **options: Any
) -> Iterator[Counter[tuple[int, ...]]]:
    """Counts how often each beginning of `wanted` tokens was written after 0, 1, and yields the counts now and then.

    The last counts are those of `count` runs. A caller that judges each of them sees most bugs long before the last
    run. The budget leaves room for a whole draft after the last token counted: it is never what cuts a draft short.
    """
    vocab_size, shared = target.shape[1], sampler(sampling, seed)
    settings = DecodeSettings(wanted + options["num_draft_tokens"], **options)
    found: Counter[tuple[int, ...]] = Counter()
    with distributions_made_once():
        for number in range(1, count + 1):
            drafter = ModelDrafter(TableModel(draft), vocab_size, shared)
            text: list[int] = []
            with closing(decode(TableModel(target), drafter, [0, 1], shared, DecodeOptions(settings))) as run:
                while len(text) < wanted:
                    event = next(run)
                    text += event.token_ids if isinstance(event, Round) else ()
            found[tuple(text[:wanted])] += 1
            if number % (count // NUM_LOOKS) == 0:
                yield found


# --- The test of the test ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_p_values_are_calibrated_and_see_a_total_variation_of_two_percent() -> None:
    generator = torch.Generator().manual_seed(1)
    distribution = torch.tensor([0.3, 0.2, 0.15, 0.12, 0.1, 0.07, 0.04, 0.02], dtype=torch.float64)
    shifted = distribution + torch.tensor([0.02, -0.02, 0, 0, 0, 0, 0, 0], dtype=torch.float64)

    def draws(probs: Tensor) -> list[int]:
        return torch.bincount(torch.multinomial(probs, 50_000, True, generator=generator), minlength=8).tolist()

    honest = [p_value(draws(distribution), distribution.tolist()) for _ in range(200)]
    caught = [p_value(draws(shifted), distribution.tolist()) < ALPHA for _ in range(20)]

    assert stats.kstest(honest, "uniform").pvalue > 1e-3
    assert all(caught)


# --- S1: one step -----------------------------------------------------------------------------------------------------


def _pairs() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)

    def random(scale: float) -> Tensor:
        return (torch.randn(8, generator=generator, dtype=torch.float64) * scale).softmax(0)

    def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
        return share * a + (1 - share) * b

    first, second = torch.eye(8, dtype=torch.float64)[[0, 5]]
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    halves = torch.tensor([0.25] * 4 + [0.0] * 4, dtype=torch.float64)
    base = random(1.0)
    return {
        "random": (base, random(1.0)),
        "equal": (base, base),
        "near equal": (base, mixed(base, uniform, 0.99)),
        "peaked target": (mixed(first, uniform, 0.95), uniform),
        "peaked draft": (uniform, mixed(first, uniform, 0.95)),
        "near disjoint": (mixed(first, uniform, 0.98), mixed(second, uniform, 0.98)),
        "disjoint": (halves, halves.flip(0)),
        "draft cut by top-k": (random(1.5), halves),
        "target cut by top-k": (halves, random(1.5)),
        "flat against steep": (uniform, random(4.0)),
    }


@pytest.mark.parametrize("name", _pairs())
def test_s1_one_step_has_the_target_distribution(name: str) -> None:
    target, draft = _pairs()[name]
    randomness = TorchRandomness(11, CPU)
    count = 50_000

    proposed = drawn(randomness._uniforms(count), draft)
    kept = accepted(
        randomness._uniforms(count),
        acceptance_probabilities(target.expand(count, 8), Draft(proposed, draft.expand(count, 8))),
    )
    corrected = drawn(randomness._uniforms(count), residual_distribution(target, draft))
    tokens = torch.where(kept, proposed, corrected)

    assert p_value(torch.bincount(tokens, minlength=8).tolist(), target.tolist()) > ALPHA
    # S4 of a single step: kept as often as the distributions overlap.
    overlap = float(torch.minimum(target, draft).sum())
    assert stats.binomtest(int(kept.sum()), count, min(overlap, 1.0)).pvalue > ALPHA


# --- S2: the joint distribution of three tokens -----------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("count", [None, MANY])
@pytest.mark.parametrize(("num_draft_tokens", "rule"), [(1, "token"), (2, "token"), (3, "token"), (4, "block")])
def test_s2_three_tokens_have_the_targets_joint_distribution(
    num_draft_tokens: int, rule: str, count: int | None
) -> None:
    logits, count = table(5, 1), count or FEW_TEXTS[num_draft_tokens]

    wanted = target_distribution(logits, PLAIN)

    for found in first_tokens(
        count, 3, logits, table(5, 2), PLAIN, seed=21, num_draft_tokens=num_draft_tokens, verification=rule
    ):
        assert p_value([found[text] for text in wanted], list(wanted.values())) > ALPHA
        assert found.total() == sum(found[text] for text in wanted)


# --- S3 to S5: long runs on a table, where every token has a known distribution given the one before ------------------

STATES = 6


def _drafter(name: str, randomness: TorchRandomness) -> Drafter:
    if name == "random":
        return random_tokens(3, STATES)
    if name == "constant":
        return ScriptedDrafter(lambda ids, limit: [2] * limit)
    seed = {"other model": 2, "same model": 1}[name]
    return ModelDrafter(TableModel(table(STATES, seed)), STATES, Sampler(PLAIN, randomness))


@cache
def long_run(name: str, count: int, rule: str = "block") -> list[tuple[int, list[Round]]]:
    """Rounds of many generations of 250 tokens, each with the token it starts after."""
    randomness, made = TorchRandomness(31, CPU), []
    for start in range(count // 250):
        options = {
            "max_new_tokens": 250,
            "num_draft_tokens": 3,
            "verification": rule,
            "sampling": PLAIN,
            "randomness": randomness,
        }
        first = start % STATES
        with distributions_made_once():
            events = run_events(TableModel(table(STATES, 1)), _drafter(name, randomness), [first], **options)
        made.append((first, rounds_of(events)))
    return made


def _transitions(runs: list[tuple[int, list[Round]]]) -> dict[str, Tensor]:
    """Counts of (last token, next token), by what became of the last one: accepted, or the target's own."""
    counts = {fate: torch.zeros(STATES, STATES, dtype=torch.int64) for fate in ("accepted", "own")}
    for first, rounds in runs:
        last, fate = first, "own"
        for round_ in rounds:
            for index, token in enumerate(round_.token_ids):
                counts[fate][last, token] += 1
                last, fate = token, "accepted" if index < round_.num_accepted else "own"
    return counts


@pytest.mark.thorough
@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("name", ["other model", "same model", "random", "constant"])
def test_s3_tokens_after_accepted_and_corrected_ones_have_the_target_distribution(name: str, count: int) -> None:
    wanted = table(STATES, 1).softmax(-1)

    for counts in _transitions(long_run(name, count)).values():
        for last in range(STATES):
            if counts[last].sum() > 100:
                assert p_value(counts[last].tolist(), wanted[last].tolist()) > ALPHA


@pytest.mark.thorough
@pytest.mark.parametrize("count", [2 * FEW, MANY])
def test_s4_each_position_accepts_as_often_as_the_distributions_overlap(count: int) -> None:
    target, draft = table(STATES, 1).softmax(-1), table(STATES, 2).softmax(-1)
    overlap = torch.minimum(target, draft).sum(-1).tolist()
    tested: Counter[tuple[int, int]] = Counter()
    kept: Counter[tuple[int, int]] = Counter()

    # Token by token only: block verification judges a draft as a whole.
    for first, rounds in long_run("other model", count, "token"):
        last = first
        for round_ in rounds:
            for position in range(min(round_.num_accepted + 1, len(round_.draft_ids))):
                context = last if position == 0 else round_.draft_ids[position - 1]
                tested[position, context] += 1
                kept[position, context] += position < round_.num_accepted
            last = round_.token_ids[-1]

    assert {position for position, _ in tested} == {0, 1, 2}
    for (position, context), number in tested.items():
        assert stats.binomtest(kept[position, context], number, overlap[context]).pvalue > ALPHA


@pytest.mark.thorough
@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("name", ["same model", "random", "constant"])
def test_s5_two_drafters_give_one_distribution(name: str, count: int) -> None:
    first, second = (sum(_transitions(long_run(each, count)).values()) for each in ("other model", name))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)

    for last in range(STATES):
        cells = torch.stack([first[last], second[last]])
        cells = cells[:, cells.sum(0) >= 20]
        assert stats.chi2_contingency(cells.numpy()).pvalue > ALPHA


# --- S6: all processors -----------------------------------------------------------------------------------------------


# Of 400 drafts the one most sensitive to a temperature on one side only: it moves 8 % of the distribution. Most pairs
# move less than 1 %, which would need more draws than a test can make.
SENSITIVE_DRAFT = 391


@pytest.mark.thorough
@pytest.mark.parametrize("count", [FEW_STEPS, pytest.param(100_000, marks=pytest.mark.slow)])
def test_s6_with_all_processors_on_both_sides_the_text_has_the_processed_distribution(count: int) -> None:
    sampling = SamplingSettings(temperature=0.7, top_k=3, top_p=0.9, repetition_penalty=1.2)
    logits = table(8, 1)
    seen = SeenTokens(8, CPU)
    seen.update([0, 1])
    no_draft = torch.empty(0, dtype=torch.int64)
    wanted = token_distributions(logits[1].unsqueeze(0), sampling, seen.rows(no_draft)).probs
    assert wanted is not None

    assert int((wanted > 0).sum()) == 3

    for found in first_tokens(count, 1, logits, table(8, SENSITIVE_DRAFT), sampling, seed=41, num_draft_tokens=1):
        assert p_value([found[token,] for token in range(8)], wanted[0].tolist()) > ALPHA


# S7


@pytest.mark.thorough
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_s7_two_tokens_of_a_real_architecture_with_a_real_draft_have_the_targets_joint_distribution(count: int) -> None:
    prompt, shared = [1, 5, 9], sampler(PLAIN, 11)
    model = tiny_model(vocab_size=16, num_hidden_layers=1)
    target, draft = cached(model, 16), cached(tiny_model(seed=1, vocab_size=16, num_hidden_layers=1), 16)
    with torch.inference_mode():
        # Known without our loop: the library's own forward over the prompt, and over it with each first token.
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        longer = torch.tensor([[*prompt, token] for token in range(16)])
        second = model(longer).logits[:, -1].double().softmax(-1)
    joint = (first[:, None] * second).flatten()
    found: Counter[int] = Counter()
    for _ in range(count):
        target.rewind(min(target.length, len(prompt) - 1))
        draft.rewind(min(draft.length, len(prompt) - 1))
        drafter = ModelDrafter(draft, 16, shared)
        text: list[int] = []
        with closing(decode(target, drafter, prompt, shared, DecodeOptions(DecodeSettings(5, 3)))) as run:
            while len(text) < 2:
                event = next(run)
                text += event.token_ids if isinstance(event, Round) else ()
        found[16 * text[0] + text[1]] += 1

    assert p_value([found[cell] for cell in range(256)], (joint / joint.sum()).tolist()) > ALPHA
