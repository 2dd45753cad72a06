"""Tests what `-k auto` loses in texts that a draft can't guess, after texts that it can, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import log2
from random import Random
from statistics import fmean

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from specgen.core.events import Round
from specgen.engine.draft_length import loss_limit
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.loss_limit import LossLimit
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine import answers
from tests.engine.answers import NUM_TOKENS, Answer, Clock, Drafts, Noise, knowing, run
from tests.engine.categories import PAIRS, Speeds, speeds, unlimited
from tests.profiles import by_profile

SEEDS = range(by_profile(6, 12))
MAY_LOSE = 1.0 + 0.25 * log2(1 + NUM_TOKENS)
"""Tokens of plain decoding that README promises to lose at most in a text of 64, where rejections are cheap."""
TRIAL = 0.6
"""Tokens by which a trial may lose more than it was expected to."""


@cache
def limited(name: str) -> Speeds:
    """The speeds of a pair, for all tests that plant no bug."""
    return speeds(PAIRS[name], SEEDS)


def check_speeds(found: Speeds) -> None:
    assert found.bad >= 0.97 - by_profile(0.005, 0.004)
    assert found.good >= 1.05


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.fast("text 0.15 0.8")
def test_a_kind_of_text_that_the_draft_cannot_guess_is_at_most_three_percent_slower_than_plain(name: str) -> None:
    check_speeds(limited(name))


@pytest.mark.thorough
def test_good_texts_give_up_one_percent_for_it() -> None:
    with unlimited():
        before = fmean(speeds(pair, SEEDS).good for pair in PAIRS.values())

    assert fmean(limited(name).good for name in PAIRS) >= 0.985 * before


@st.composite
def programs(draw: st.DrawFn) -> tuple[Drafts, float, int]:
    """Returns a draft whose rejection costs less than a token, its acceptance in the last text, and a seed."""
    slope = draw(st.floats(0.0, 0.1))
    drafts = Drafts(
        draw(st.floats(0.05, 0.4)),
        draw(st.floats(0.5, 0.85)),
        spread=0.0,
        verify_cost=lambda n: 1 + slope * (n - 1),
        confidence=draw(st.floats(0.0, 0.8)),
        reading=draw(st.floats(0.0, 0.1)),
    )
    return drafts, draw(st.floats(0.0, 1.0)), draw(st.integers(0, 1000))


def loss_of_last_text(program: tuple[Drafts, float, int]) -> float:
    """Returns the steps that the last of four texts takes more than plain decoding, whose cost is its length."""
    drafts, acceptance, seed = program
    costs = CostTable({n: drafts.verify_cost(n) for n in range(1, 18)})
    policy = CostAwareLength(costs, DraftCost(drafts.pass_cost, costs), drafts.acceptance)
    exact = Clock(Noise(spread=0.0, outliers=0.0), seed)
    for number in range(3):
        run(Answer(seed + number, drafts), policy, exact)
    last = Answer(seed + 3, drafts)
    last.accepted = [right and place % 100 < 100 * acceptance for place, right in enumerate(last.accepted)]
    return run(last, policy, exact) - NUM_TOKENS


def check_loss(program: tuple[Drafts, float, int]) -> None:
    assert loss_of_last_text(program) <= MAY_LOSE + TRIAL


test_no_text_loses_more_than_the_limit = pytest.mark.thorough(given(programs())(check_loss))


def a_round(num_drafted: int, num_accepted: int, num_passes: int) -> Round:
    draft = (1,) * num_drafted
    return Round(1, draft, num_accepted, 2, 0, 0.2 * num_passes, 1.0, 0.0, "model", num_passes=num_passes)


def test_a_draft_that_found_no_token_is_charged_with_its_passes() -> None:
    costs = CostTable(dict.fromkeys(range(1, 10), 1.0))
    policy = CostAwareLength(costs, DraftCost(0.2, costs), 0.8)
    num_drafts = 0
    for _ in range(NUM_TOKENS):
        policy.start_round()
        is_drafted = policy.should_draft()
        if is_drafted:
            for _ in range(6):
                policy.on_pass(0.9)
            policy.on_token(0.0, 0)
            num_drafts += 1
            policy.observe(Round(1, (), 0, 2, 0, 1.2, 1.0, 0.0, None, num_passes=6))
        else:
            policy.observe(Round(1, (), 0, 2, 0, 0.0, 1.0, 0.0, None))

    # 1.2 tokens each: the second is the last that the limit of a text of 64 has room for.
    assert 1 <= num_drafts <= 2


def test_a_text_that_begins_with_bad_luck_is_drafted_again() -> None:
    costs = CostTable(dict.fromkeys(range(1, 18), 1.0))
    policy = CostAwareLength(costs, DraftCost(0.25, costs), 0.7)
    drafted: list[bool] = []
    for index in range(NUM_TOKENS):
        policy.start_round()
        is_drafted = policy.should_draft()
        if is_drafted:
            policy.on_token(0.7)
        drafted.append(is_drafted)
        is_right = is_drafted and index > 5
        policy.observe(a_round(1, int(is_right), 1) if is_drafted else Round(1, (), 0, 2, 0, 0.0, 1.0, 0.0, None))

    assert not all(drafted[:10])
    assert all(drafted[-20:])


LONG = 1200
"""Tokens of a long text."""


def speed_of_long_text(monkeypatch: pytest.MonkeyPatch, num_bad: int, reading: float) -> float:
    """Returns the speed of a long text whose first tokens the draft can't guess, and most of the others it can."""
    monkeypatch.setattr(answers, "NUM_TOKENS", LONG)
    drafts = replace(PAIRS["shared 0.25 0.75"].good, spread=0.0, reading=reading)
    answer, chance = Answer(3, drafts), Random(5)
    answer.accepted = [place >= num_bad and chance.random() < 0.85 for place in range(2 * LONG)]
    answer.confidence = [0.6 if place < num_bad else 0.8 for place in range(2 * LONG)]
    return LONG / run(answer, knowing(drafts, 0.7), Clock(Noise(spread=0.0, outliers=0.0), 1))


@pytest.mark.parametrize("reading", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("num_bad", [15, 150])
@pytest.mark.fast("15-0.0", "150-0.05")
def test_a_long_text_that_begins_badly_is_drafted_again_although_the_draft_has_to_read_it(
    monkeypatch: pytest.MonkeyPatch, num_bad: int, reading: float
) -> None:
    """Reading grows with the text and the limit more slowly: 15 rejected tokens ended the drafts of 1200."""
    assert speed_of_long_text(monkeypatch, num_bad, reading) > 1.4


@pytest.mark.parametrize("reading", [0.0, 0.02, 0.05, 0.2])
@pytest.mark.fast("0.0", "0.2")
def test_a_long_text_that_the_draft_cannot_guess_loses_little(monkeypatch: pytest.MonkeyPatch, reading: float) -> None:
    assert speed_of_long_text(monkeypatch, LONG, reading) > 0.98


@pytest.mark.parametrize("num_tokens", [10, 100, 1000, 10_000])
def test_the_limit_is_a_small_share_of_a_long_text(num_tokens: int) -> None:
    limit = LossLimit()
    limit.observe(0.0, num_tokens)

    assert limit.left(0.3) <= 2.0 + 0.015 * num_tokens


def never_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_limit.LossLimit, "observe", lambda *_, **__: None)


def kept_from_the_last_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_limit.LossLimit, "start_text", lambda _: None)


@pytest.mark.thorough
@pytest.mark.parametrize("plant", [never_charged, kept_from_the_last_text])
def test_a_limit_that_does_not_limit_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    with pytest.raises(AssertionError):
        check_speeds(speeds(PAIRS["shared 0.25 0.75"], SEEDS))
    # To look for the smallest program that fails would take most of the time.
    with pytest.raises(AssertionError):
        settings(phases=[Phase.generate])(given(programs())(check_loss))()
