"""Simulates programs that answer texts of several kinds, in one of which the draft is nearly always wrong.

Seen with Qwen2.5-Coder-1.5B: translations, where SmolLM2-135M and Gemma 3 270M had 0 of 4 and 2 of 19 tokens accepted.

`python -m tests.engine.categories` prints a table: the speed in texts of the usual kinds and of the bad one, in tokens
per step of the target, with and without the limit of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

from specgen.engine.draft_length import loss_limit
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.answers import NOISES, NUM_TOKENS, Answer, Clock, Drafts, Noise, knowing, run
from tests.engine.replays import Costs, table

BAD_ACCEPTANCE = 0.05
ORDER = "ggggbggb"
"""Kinds of the texts of a program: g is good, b is bad."""
FLAT = table({n: 1 + 0.02 * (n - 1) for n in (1, 2, 4, 8, 17)})
STEEP = table({n: 1 + 0.1 * (n - 1) for n in (1, 2, 4, 8, 17)})


@dataclass(frozen=True)
class Pair:
    """A draft in its usual texts and in bad ones."""

    good: Drafts
    bad: Drafts


def shared(cost: float, acceptance: float, confidence: float, verify_cost: Costs = FLAT) -> Pair:
    """A draft of shared tokens; `confidence` says how sure of its tokens it is in bad texts, without a reason."""
    good = Drafts(cost, acceptance, 0.15, verify_cost)
    return Pair(good, replace(good, acceptance=BAD_ACCEPTANCE, spread=0.03, confidence=confidence))


def text(cost: float, acceptance: float, unfinished: float, verify_cost: Costs = FLAT) -> Pair:
    """A draft of text, which in bad texts often finds no token to propose."""
    good = Drafts(cost, acceptance, 0.15, verify_cost, passes=1.2)
    bad = replace(good, acceptance=BAD_ACCEPTANCE, spread=0.03, confidence=0.4, passes=1.6, unfinished=unfinished)
    return Pair(good, bad)


PAIRS = {
    "shared 0.15 0.6": shared(0.15, 0.6, 0.6),
    "shared 0.25 0.6 unsure": shared(0.25, 0.6, 0.2),
    "shared 0.25 0.75": shared(0.25, 0.75, 0.6),
    "shared 0.4 0.6": shared(0.4, 0.6, 0.6),
    "shared 0.4 0.75": shared(0.4, 0.75, 0.6),
    "steep shared 0.25 0.6": shared(0.25, 0.6, 0.6, STEEP),
    "text 0.15 0.65 unfinished": text(0.15, 0.65, 0.5),
    "text 0.15 0.8": text(0.15, 0.8, 0.0),
    "text 0.25 0.8 unfinished": text(0.25, 0.8, 0.5),
}
"""By kind of draft, cost of its pass and acceptance in good texts."""


@dataclass(frozen=True)
class Speeds:
    """Tokens per step of the target, means of many texts; 1 is plain decoding.

    Args:
        good: Of good texts.
        bad: Of bad ones.
        worst: Of bad ones, the tenth percentile of pairs of texts.
    """

    good: float
    bad: float
    worst: float


def taught(drafts: Drafts) -> CostAwareLength:
    """A policy that knows costs and acceptance from earlier runs."""
    return knowing(drafts, drafts.acceptance)


def speeds(
    pair: Pair,
    seeds: Sequence[int],
    make: Callable[[Drafts], CostAwareLength] = taught,
    noise: Noise = NOISES["all known"],
) -> Speeds:
    """Runs programs, each with one policy."""
    good: list[float] = []
    bad: list[float] = []
    pairs: list[float] = []
    for seed in seeds:
        policy, clock = make(pair.good), Clock(noise, seed)
        steps = [
            (kind, run(Answer(1000 * seed + number, pair.good if kind == "g" else pair.bad), policy, clock))
            for number, kind in enumerate(ORDER)
        ]
        good += [cost for kind, cost in steps if kind == "g"]
        own = [cost for kind, cost in steps if kind == "b"]
        bad += own
        pairs.append(fmean(own))
    worst = sorted(pairs)[int(0.9 * len(pairs))]
    return Speeds(NUM_TOKENS / fmean(good), NUM_TOKENS / fmean(bad), NUM_TOKENS / worst)


@contextmanager
def unlimited() -> Iterator[None]:
    """Switches the limit off."""
    allowance = loss_limit.ALLOWANCE
    loss_limit.ALLOWANCE = 1e9
    try:
        yield
    finally:
        loss_limit.ALLOWANCE = allowance


def main() -> None:
    """Print the table."""
    print(f"{'draft':<28}{'without a limit: good':>22}{'bad':>7}{'p10':>7}{'with it: good':>16}{'bad':>7}{'p10':>7}")
    rows = []
    for name, pair in PAIRS.items():
        with unlimited():
            before = speeds(pair, range(40))
        after = speeds(pair, range(40))
        rows.append((before.good, before.bad, before.worst, after.good, after.bad, after.worst))
        print(f"{name:<28}", _line(rows[-1]), flush=True)
    print(f"{'mean':<28}", _line([fmean(column) for column in zip(*rows, strict=True)]))


def _line(values: Sequence[float]) -> str:
    return "".join(f"{value:>{width}.3f}" for value, width in zip(values, (21, 7, 7, 16, 7, 7), strict=True))


if __name__ == "__main__":
    main()
