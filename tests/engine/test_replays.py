"""Tests the draft-length policies on recorded and synthetic texts: gains where text repeats, losses elsewhere."""

from __future__ import annotations

from statistics import fmean

import pytest

from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.replays import (
    BF16,
    FP32,
    LLAMA,
    NF4,
    Kind,
    Machine,
    Trace,
    edited_trace,
    free_trace,
    recorded_traces,
    speed,
)

MACHINES = {
    "bf16": Machine(BF16, 0.2, 0.02),
    "nf4": Machine(NF4, 0.26, 0.05),
    "llama.cpp": Machine(LLAMA, 0.7, 0.4),
    "fp32": Machine(FP32, 0.3, 0.1),
}
COPIES = [edited_trace(seed, 0.0) for seed in range(4)]
EDITS = [edited_trace(seed, 0.05) for seed in range(4)]
FREE = [free_trace(seed) for seed in range(6)]


def with_known_costs(machine: Machine) -> CostAwareLength:
    """A policy that knows the machine from an earlier run, and nothing of the text."""
    known = {n: machine.verify_cost(n) for n in (*range(1, 10), 13, 17)}
    return CostAwareLength(CostTable(known), DraftCost(machine.draft_cost))


def mean_speed(traces: list[Trace], machine: Machine, kind: Kind) -> float:
    return fmean(speed(trace, machine, kind, with_known_costs(machine)) for trace in traces)


def best_fixed(traces: list[Trace], machine: Machine) -> float:
    return max(
        fmean(speed(trace, machine, "lookup", FixedLength(), k) for trace in traces) for k in (0, 1, 2, 3, 5, 7, 15)
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("traces", [COPIES, EDITS], ids=["copies", "edits"])
def test_lookup_comes_close_to_its_best_fixed_length_where_matches_hold(traces: list[Trace], name: str) -> None:
    assert mean_speed(traces, MACHINES[name], "lookup") >= 0.96 * best_fixed(traces, MACHINES[name])


def test_lookup_drafts_on_a_steep_machine_where_matches_hold() -> None:
    """v(4) = 2.8 leaves at most 1.43x for a perfect copy, and 1.33x at an acceptance of 0.95."""
    assert mean_speed(COPIES, MACHINES["llama.cpp"], "lookup") >= 1.33
    assert mean_speed(EDITS, MACHINES["llama.cpp"], "lookup") >= 1.18


@pytest.mark.parametrize("name", ["bf16", "nf4", "llama.cpp"])
@pytest.mark.fast("nf4")
def test_lookup_loses_at_most_two_percent_where_matches_mean_nothing(name: str) -> None:
    assert mean_speed(FREE, MACHINES[name], "lookup") >= 0.98


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.fast("bf16")
def test_lookup_that_learns_the_costs_as_it_goes_loses_little_more(name: str) -> None:
    assert fmean(speed(trace, MACHINES[name], "lookup") for trace in FREE) >= 0.96


@pytest.mark.parametrize("name", ["bf16", "nf4"])
@pytest.mark.fast("bf16")
def test_lookup_with_a_good_model_wins_on_edits_and_costs_little_elsewhere(name: str) -> None:
    machine = MACHINES[name]

    assert mean_speed(EDITS, machine, "combined") >= 1.5 * mean_speed(EDITS, machine, "model")
    assert mean_speed(FREE, machine, "combined") >= 0.97 * mean_speed(FREE, machine, "model")


@pytest.mark.thorough
def test_lookup_with_a_model_that_does_not_pay_works_as_lookup_alone() -> None:
    machine = MACHINES["llama.cpp"]

    assert mean_speed(EDITS, machine, "combined") >= 0.97 * mean_speed(EDITS, machine, "lookup")
    assert mean_speed(FREE, machine, "combined") >= 0.98


def test_a_model_that_does_not_pay_is_not_made_to_read_a_long_text_for_a_try() -> None:
    for trace in FREE:
        assert speed(trace, MACHINES["llama.cpp"], "model") >= 0.97


@pytest.mark.parametrize("limit", [2, 4, 7])
def test_a_fixed_length_with_lookup_and_a_model_is_no_slower_than_the_model_alone(limit: int) -> None:
    machine = MACHINES["bf16"]
    for traces, floor in ((EDITS, 1.2), (FREE, 0.97)):
        together = fmean(speed(trace, machine, "combined", FixedLength(), limit) for trace in traces)
        alone = fmean(speed(trace, machine, "model", FixedLength(), limit) for trace in traces)
        assert together >= floor * alone


@pytest.mark.parametrize("name", ["bf16", "nf4"])
def test_recorded_answers_are_faster_with_lookup_than_without(name: str) -> None:
    for trace in recorded_traces():
        assert speed(trace, MACHINES[name], "lookup", with_known_costs(MACHINES[name])) >= 1.05
