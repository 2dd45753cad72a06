"""Shows what each tunable of the draft-length policies contributes: `python -m tests.engine.ablation [NAME...]`.

Each tunable is switched off in turn. For each kind of drafter (a mean over the machines) and for each machine (a mean
over the kinds), it prints the change of the replays' mean speed in percent. A tunable that changes no mean by more than
0.3 % and breaks no test is not worth its code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from types import ModuleType

from specgen.engine.draft_length import (
    acceptance,
    baseline_refresh,
    cost_table,
    draft_cost,
    draft_model_stats,
    exploration,
    fixed,
    loss_limit,
    model_drafts,
    policy,
    throughput,
)
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.replays import Kind, Machine, edited_trace, free_trace, recorded_traces, speed
from tests.engine.test_replays import MACHINES, with_known_costs

KINDS: tuple[Kind, ...] = ("lookup", "model", "combined")
TRACES = [
    *recorded_traces(),
    *(edited_trace(seed, 0.05) for seed in range(3)),
    *(free_trace(seed) for seed in range(3)),
]
NEVER = 10**9

NEUTRAL: dict[ModuleType, dict[str, object]] = {
    acceptance: {
        "NUM_CONFIDENCE_BINS": 1,
        "CONFIDENCE_PRIOR_WEIGHT": 1e-6,
        "INITIAL_MEAN_ACCEPTANCE": 0.5,
        "INITIAL_MEAN_WEIGHT": 1e9,
        "LARGEST_CORRELATION": 1e-9,
        "TEXT_DECAY": 1.0,
        "BIN_DECAY": 1 - 1e-9,
        "DRIFT_DECAY": 1.0,
        "DRIFT_PRIOR_WEIGHT": 1e9,
        "MATCH_BINS": ((1, 0.7),),
        "AMBIGUOUS_FACTOR": 1.0,
        "MATCH_PRIOR_WEIGHT": 1e-6,
    },
    throughput: {"LATEST_WEIGHT": 0.0},
    exploration: {
        "FIRST_EXPLORATION_BUDGET": 0.0,
        "LARGEST_EXPLORATION_BUDGET": 1e9,
        "LARGEST_CREDIT": 0.0,
        "EXPLORATION_SHARE": 0.0,
        "LONG_TEXT": NEVER,
    },
    model_drafts: {"TRIAL_LENGTHS": (1,), "BEST_ACCEPTANCE": 1.0, "MARGIN": 0.0},
    draft_model_stats: {"MIN_READ": 1},
    loss_limit: {"ALLOWANCE": 1e9, "PER_DOUBLING": 0.0, "LONG_TEXT_SHARE": 0.0},
    policy: {"MARGIN": 0.0, "RISKED_SHARE": 1e9},
    baseline_refresh: {"REFRESH_INTERVAL": NEVER, "CLEAR_GAIN": 1e9, "REFRESH_SHARE": 1e-9},
    cost_table: {
        "NUM_SAMPLES": 1,
        "SINGLE_HALF_LIFE": 1e9,
        "STEEPEST": 1e9,
        "DISTURBED": 1e9,
        "OPTIMISTIC_SLOPE": 0.0,
        "NUM_CONFIRMING": 1,
    },
    draft_cost: {"DOUBTFUL": 1e9, "HALF_LIFE": 1e9},
    fixed: {"ACCEPTED_STEP": 0.0, "INITIAL_NUM_ACCEPTED": 0.0, "SHORTEST_MATCH": 1},
}
"""By module: values that switch its tunables off."""


def policies(machine: Machine) -> list[LengthPolicy]:
    """The policies a tunable can serve: `auto` that knows the machine, nothing, or wrong costs; and a fixed length."""
    wrong = {n: machine.verify_cost(n) * (1 if n == 1 else 2) for n in range(1, 18)}
    table = CostTable(wrong)
    return [
        with_known_costs(machine),
        CostAwareLength(CostTable(), DraftCost()),
        CostAwareLength(table, DraftCost(4 * machine.draft_cost, table)),
        FixedLength(),
    ]


def speeds() -> dict[tuple[str, str], float]:
    """Mean speed by kind of drafter and machine, in tokens per step of the target."""
    return {
        (kind, name): fmean(
            speed(trace, machine, kind, policy, 5 if isinstance(policy, FixedLength) else 16)
            for trace in TRACES
            for policy in policies(machine)
        )
        for kind in KINDS
        for name, machine in MACHINES.items()
    }


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Give a tunable another value."""
    default = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, default)


def main(names: list[str]) -> None:
    """Print the table."""
    default = speeds()
    columns = [*KINDS, *MACHINES]
    print(f"{'tunable':<28}", *(f"{column:>9}" for column in columns))
    for module, tunables in NEUTRAL.items():
        for name, neutral in tunables.items():
            if names and name not in names:
                continue
            with replaced(module, name, neutral):
                changed = {key: value / default[key] for key, value in speeds().items()}
            means = [fmean(ratio for key, ratio in changed.items() if column in key) for column in columns]
            print(f"{name:<28}", *(f"{100 * (mean - 1):>+9.2f}" for mean in means), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
