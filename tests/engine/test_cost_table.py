"""Tests the cost table: an earlier run's costs help from the first round on, and wrong ones are soon corrected."""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.test_draft_length import FLAT, STEEP, STEPPED, Costs, Machine, auto

SEEDS = range(6)
"""A single run depends on luck: which drafts are rejected changes the speed by a few per cent."""
EARLIER = {1: 1.0, 2: 1.1, 4: 1.2, 8: 2.0}


def test_earlier_figures_are_known_and_not_confirmed() -> None:
    table = CostTable(EARLIER)

    assert table.is_supported(1)
    assert table.seconds(3) == pytest.approx(1.15)
    assert table.confirmed == frozenset()


def test_an_earlier_figure_counts_as_one_pass_where_the_first_one_is_slower() -> None:
    table = CostTable(EARLIER)

    table.observe(4, 1.8)
    assert table.seconds(4) == pytest.approx(1.5)
    table.observe(4, 1.8)

    assert table.seconds(4) == 1.8
    assert table.confirmed == {4}


def test_a_faster_pass_than_an_earlier_run_found_is_believed_at_once() -> None:
    table = CostTable(EARLIER)

    table.observe(4, 0.6)

    assert table.seconds(4) == 0.6


def test_a_machine_that_became_slower_is_slower_at_every_length() -> None:
    table = CostTable(EARLIER)

    for _ in range(3):
        table.observe(1, 2.0)

    assert table.drift == 2.0
    assert table.known == {1: 2.0, 2: 2.2, 4: 2.4, 8: 4.0}


def test_one_length_that_was_disturbed_does_not_move_the_others() -> None:
    table = CostTable(EARLIER)
    for num_tokens in (1, 2, 4):
        for _ in range(3):
            table.observe(num_tokens, EARLIER[num_tokens] * (5 if num_tokens == 2 else 1))

    assert table.seconds(8) == 2.0


def test_without_an_earlier_run_nothing_drifts() -> None:
    table = CostTable()

    table.observe(1, 1.0)
    table.observe(2, 9.0)

    assert table.drift == 1.0


def test_a_draft_tokens_cost_drifts_with_the_targets_until_it_is_measured() -> None:
    table = CostTable({1: 1.0})
    cost = DraftCost(0.1, table)
    table.observe(1, 3.0)
    table.observe(1, 3.0)

    assert cost.seconds == pytest.approx(0.3 * 0.5 ** (2 / 16))
    for _ in range(3):
        cost.observe(2, 0.4)

    assert cost.seconds == pytest.approx(0.2)
    assert cost.is_confirmed


def test_a_single_token_costs_no_more_than_several() -> None:
    """Else a disturbed first pass would make every draft look cheap, and no plain round would ever correct it."""
    table = CostTable()
    table.observe(1, 13.0)

    for _ in range(2):
        table.observe(5, 1.5)

    assert table.is_single_doubtful
    assert table.seconds(1) == table.known[1] <= 2.0
    for _ in range(2):
        table.observe(1, 1.0)
    assert not table.is_single_doubtful
    assert table.seconds(1) == 1.0


def test_single_tokens_that_are_really_slower_are_believed_after_some_passes() -> None:
    table = CostTable()
    for _ in range(7):
        table.observe(1, 3.0)
        table.observe(5, 1.5)

    assert not table.is_single_doubtful
    assert table.seconds(1) == 3.0


@pytest.mark.parametrize("num_disturbed", [1, 2, 4])
def test_a_bad_draft_after_disturbed_passes_loses_almost_nothing(num_disturbed: int) -> None:
    """A draft of no use, and the first passes take thirteen times as long: it must not look cheap for long."""
    passes = itertools.count()

    def verify_cost(num_tokens: int) -> float:
        return STEEP(num_tokens) * (13 if next(passes) < num_disturbed else 1)

    machine = Machine(verify_cost, 0.6, 0.3)
    rounds = machine.run(auto(), 16, num_tokens=400)

    undisturbed = sum(round_.seconds for round_ in rounds[num_disturbed:])
    num_tokens = sum(len(round_.token_ids) for round_ in rounds[num_disturbed:])
    assert undisturbed / num_tokens <= 1.05 * STEEP(1)


def seeds_of(verify_cost: Costs) -> range:
    """Returns the seeds to average over: where a rejected draft costs 1.5 tokens, luck changes the speed by more."""
    return range(16) if verify_cost is STEPPED else SEEDS


@cache
def speed_without_earlier_costs(verify_cost: Costs) -> float:
    """Returns the sum over the seeds, for all loads that are compared with it."""
    return sum(Machine(verify_cost, 0.1, 0.8, seed=seed).speed(auto()) for seed in seeds_of(verify_cost))


LOADS = [(1.0, 1.0), (3.0, 3.0), (1 / 3, 1 / 3), (1.0, 8.0), (1.0, 0.1), (3.0, 1.0)]


# The draft pays most where a pass costs as much over many tokens as over one, and least where the cost has a step.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("verify_cost", "load", "draft_load"),
    [*((STEPPED, *loads) for loads in LOADS), *((FLAT, *loads) for loads in LOADS[1:5]), (STEEP, 3.0, 1.0)],
)
def test_costs_measured_next_to_a_busy_neighbour_lose_almost_nothing(
    verify_cost: Costs, load: float, draft_load: float
) -> None:
    def speed(seed: int) -> float:
        costs = CostTable({n: verify_cost(n) * load for n in range(1, 18)})
        draft_length = CostAwareLength(costs, DraftCost(0.1 * draft_load, costs))
        return Machine(verify_cost, 0.1, 0.8, seed=seed).speed(draft_length)

    # Drafts that are too long, for wrong costs, count as losses of the text: see `LossLimit`.
    assert sum(map(speed, seeds_of(verify_cost))) >= 0.96 * speed_without_earlier_costs(verify_cost)


def test_lengths_that_only_look_expensive_are_tried_again() -> None:
    """Every pass over several tokens was disturbed, single ones were not: the shape itself is wrong."""
    costs = CostTable({n: FLAT(n) * (1 if n == 1 else 3) for n in range(1, 18)})

    speed = Machine(FLAT, 0.1, 0.8).speed(CostAwareLength(costs, DraftCost(0.1, costs)))

    assert speed >= 0.9 * Machine(FLAT, 0.1, 0.8).speed(auto())


def test_known_costs_spare_the_first_rounds_their_tries() -> None:
    verify_cost, draft_cost, quality = STEEP, 0.4, 0.6

    def seconds(draft_length: CostAwareLength, seed: int) -> float:
        rounds = Machine(verify_cost, draft_cost, quality, seed=seed).run(draft_length, 16, num_tokens=12)
        return sum(round_.seconds for round_ in rounds)

    def knowing() -> CostAwareLength:
        costs = CostTable({n: verify_cost(n) for n in range(1, 18)})
        return CostAwareLength(costs, DraftCost(draft_cost, costs))

    assert sum(seconds(knowing(), seed) for seed in SEEDS) <= sum(seconds(auto(), seed) for seed in SEEDS)
