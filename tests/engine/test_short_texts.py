"""Tests what `-k auto` loses and gains in texts of 64 tokens, on a simulated clock: there is little to learn from."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length import cost_table, draft_model_stats, exploration, model_drafts
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.replays import Machine as ReplayMachine
from tests.engine.replays import recorded_traces, replay, table
from tests.engine.test_draft_length import FLAT, STEEP, Costs, Machine

NUM_TOKENS = 64
SEEDS = range(8)
INT8 = table({1: 1.0, 2: 1.14, 3: 1.28, 4: 1.38, 5: 1.48, 6: 1.58, 9: 1.87, 17: 2.3})
"""v(n) of Qwen2.5-Coder-1.5B in int8 on two cores without a flat kernel, in steps."""
LOSING = [(INT8, 0.2, 0.0), (INT8, 0.4, 0.2), (INT8, 0.9, 0.85), (STEEP, 0.2, 0.3), (FLAT, 0.9, 0.5)]
WINNING = [
    (INT8, 0.1, 0.5),
    (INT8, 0.2, 0.7),
    (INT8, 0.4, 0.85),
    (FLAT, 0.2, 0.5),
    (FLAT, 0.1, 0.7),
    (STEEP, 0.2, 0.85),
]


def knowing(verify_cost: Costs, draft_cost: float) -> CostAwareLength:
    """A policy that knows the costs from an earlier run, and nothing of the draft's acceptance."""
    costs = CostTable({n: verify_cost(n) for n in (*range(1, 10), 13, 17)})
    return CostAwareLength(costs, DraftCost(draft_cost, costs))


def speed(machine: tuple[Costs, float, float], policy: Callable[[], LengthPolicy], limit: int = 16) -> float:
    """Returns the tokens per target step of texts of 64 tokens."""
    runs = [Machine(*machine, seed=seed).run(policy(), limit, NUM_TOKENS) for seed in SEEDS]
    return len(runs) * NUM_TOKENS / sum(round_.seconds for rounds in runs for round_ in rounds)


def best_speed(machine: tuple[Costs, float, float]) -> float:
    """Returns the same of the best fixed length; 1 if none pays."""
    return max(1.0, *(speed(machine, FixedLength, limit) for limit in (1, 2, 3, 4, 6)))


@pytest.mark.parametrize("machine", LOSING, ids=lambda machine: f"{machine[1]}-{machine[2]}")
@pytest.mark.fast("0.2-0.0")
def test_a_draft_that_does_not_pay_loses_little_in_a_short_text(machine: tuple[Costs, float, float]) -> None:
    assert best_speed(machine) == 1.0
    assert speed(machine, lambda: knowing(*machine[:2])) >= 0.975


@pytest.mark.parametrize("machine", WINNING, ids=lambda machine: f"{machine[1]}-{machine[2]}")
@pytest.mark.fast("0.4-0.85")
def test_a_draft_that_pays_is_as_fast_as_at_its_best_fixed_length(machine: tuple[Costs, float, float]) -> None:
    assert speed(machine, lambda: knowing(*machine[:2])) >= 0.97 * best_speed(machine)


@pytest.mark.thorough
def test_a_draft_that_paid_in_other_texts_loses_little_where_it_does_not() -> None:
    def taught() -> CostAwareLength:
        policy = knowing(INT8, 0.2)
        for seed in range(4):
            Machine(INT8, 0.2, 0.6, seed=seed).run(policy, 16, NUM_TOKENS)
        return policy

    assert speed((INT8, 0.2, 0.0), taught) >= 0.96


class FirstUse(Machine):
    """The first draft, and the first pass of each length, take five times as long as later ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: set[int] = set()
        inner = self.verify_cost

        def verify_cost(num_tokens: int) -> float:
            is_first = num_tokens > 1 and num_tokens not in seen
            seen.add(num_tokens)
            return inner(num_tokens) * (5 if is_first else 1)

        self.verify_cost = verify_cost


def late_drafts() -> float:
    """Returns the share of later rounds that draft, after dear first ones."""
    shares = []
    for seed in SEEDS:
        costs = CostTable()
        policy = CostAwareLength(costs, DraftCost(None, costs, 0.1))
        rounds = FirstUse(INT8, 0.2, 0.7, seed=seed).run(policy, 16, NUM_TOKENS)
        later = rounds[len(rounds) // 2 :]
        shares.append(fmean(bool(round_.draft_ids) for round_ in later))
    return fmean(shares)


@pytest.mark.fault("F47")
def test_dear_first_passes_do_not_end_the_drafts_of_a_short_text() -> None:
    """Seen: first passes over two and four tokens took 2.3 and 7.2 steps; six runs of 64 tokens then drafted none."""
    assert late_drafts() >= 0.5


def test_a_first_draft_that_was_dear_is_tried_again() -> None:
    costs = CostTable({n: INT8(n) for n in range(1, 10)})
    policy = CostAwareLength(costs, DraftCost(None, costs, 0.1))
    policy.start_text(Prefill(8, 0, 1.0, 0.1))
    drafted = 0
    for index in range(NUM_TOKENS):
        policy.start_round()
        is_drafted = policy.should_draft()
        if is_drafted:
            policy.on_token(0.9)
            drafted += 1
        seconds = (1.5 if drafted == 1 else 0.2) if is_drafted else 0.0
        draft = (1,) if is_drafted else ()
        policy.observe(Round(index, draft, len(draft), 1, 0, seconds, INT8(1 + len(draft)), 0.0, "model"))

    assert drafted > NUM_TOKENS / 2


def drafts_after_tokens_of(num_passes: int) -> bool:
    """Returns whether a draft of text is made after right ones whose tokens took so many passes each."""
    policy = knowing(INT8, 0.4)
    policy.start_text(Prefill(8, 0, 1.0, 0.1))
    for index in range(3):
        policy.start_round()
        for _ in range(num_passes - 1):
            policy.on_pass(0.95)
        policy.on_token(0.95)
        policy.observe(Round(index, (1,), 1, 1, 0, 0.4 * num_passes, INT8(2), 0.0, "model", num_passes=num_passes))
    policy.start_round()
    return policy.should_draft()


def test_tokens_that_take_several_passes_of_the_draft_are_priced_by_them() -> None:
    assert drafts_after_tokens_of(1)
    assert not drafts_after_tokens_of(3)


@pytest.mark.parametrize(("confidence", "goes_on"), [(0.95, True), (0.2, False)])
def test_a_text_that_gives_no_token_yet_is_continued_where_its_token_is_likely_enough(
    confidence: float, goes_on: bool
) -> None:
    policy = knowing(INT8, 0.1)
    policy.start_text(Prefill(8, 0, 1.0, 0.1))
    policy.start_round()
    assert policy.should_draft()

    policy.on_pass(confidence)

    assert policy.should_draft() == goes_on


@pytest.mark.parametrize("draft_cost", [0.2, 0.4])
def test_lookup_with_a_model_is_not_slower_than_the_better_of_the_two(draft_cost: float) -> None:
    machine = ReplayMachine(INT8, draft_cost, 0.02)

    def tokens_per_step(kind: str) -> float:
        rounds = [replay(trace, machine, kind, knowing(INT8, draft_cost)) for trace in recorded_traces()]  # type: ignore[arg-type]
        return sum(len(r.token_ids) for run in rounds for r in run) / sum(r.seconds for run in rounds for r in run)

    # Six texts: a draft of the other kind in one of them changes a percent.
    assert tokens_per_step("combined") >= 0.985 * max(tokens_per_step("lookup"), tokens_per_step("model"))


def check_losing_drafts() -> None:
    for machine in LOSING:
        test_a_draft_that_does_not_pay_loses_little_in_a_short_text(machine)


def never_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration.Exploration, "can_lose", lambda *_: True)


def without_a_margin_for_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_drafts.ModelDrafts, "losses_where_it_pays", lambda self: iter([0.0][self.num_drafted :]))


@pytest.mark.thorough
@pytest.mark.parametrize("plant", [never_charged, without_a_margin_for_luck])
def test_a_policy_that_does_not_stop_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    with pytest.raises(AssertionError):
        check_losing_drafts()


@pytest.mark.thorough
def test_first_passes_that_are_believed_for_good_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_table, "SINGLE_HALF_LIFE", 10**9)
    monkeypatch.setattr(cost_table, "DISTURBED", 10**9)

    with pytest.raises(AssertionError):
        test_dear_first_passes_do_not_end_the_drafts_of_a_short_text()


@pytest.mark.thorough
def test_tokens_priced_as_one_pass_each_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_model_stats.PassesPerToken, "observe", lambda *_: None)

    with pytest.raises(AssertionError):
        test_tokens_that_take_several_passes_of_the_draft_are_priced_by_them()


@pytest.mark.thorough
def test_passes_without_a_token_that_change_no_expectation_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_drafts.ModelDrafts, "on_pass", lambda *_: None)

    with pytest.raises(AssertionError):
        test_a_text_that_gives_no_token_yet_is_continued_where_its_token_is_likely_enough(0.2, goes_on=False)
