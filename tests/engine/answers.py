"""Simulates runs of several short answers with a draft, to measure what `-k auto` loses and gains.

The costs of passes were measured with Qwen2.5-Coder-1.5B and drafts of 135 to 500 million parameters on two cores.
Accepted tokens are drawn: answers differ in their mean acceptance, places of an answer in how easy they are.

`python -m tests.engine.answers` prints a table: for each draft the speed of the first answer and of later ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from tests.engine.replays import Costs, table

NUM_TOKENS = 64
NUM_PROMPT = 60
UNFINISHED_PASSES = 6
LENGTHS = (1, 2, 3, 4, 6, 8)
"""Fixed draft lengths that `-k auto` is compared with."""
INT8 = table({1: 1.0, 2: 1.09, 4: 1.23, 6: 1.37, 8: 1.46, 16: 2.0})
BF16 = table({1: 1.0, 2: 1.14, 4: 1.38, 6: 1.58, 9: 1.87, 17: 2.3})
NF4 = table({1: 1.0, 2: 1.02, 3: 1.12, 4: 1.28, 5: 1.66, 8: 1.9, 16: 3.0})


@dataclass(frozen=True)
class Noise:
    """How the measured time of a pass differs from its cost.

    Args:
        spread: Standard deviation of a pass, as a share of it.
        outliers: Share of passes that are disturbed, and take 1.5 to 4 times as long.
        first_use: Factor of the first pass of each length, and of the first draft.
    """

    spread: float = 0.03
    outliers: float = 0.01
    first_use: float = 1.0


@dataclass(frozen=True)
class Drafts:
    """A draft for a target, in steps of the target.

    Args:
        pass_cost: A pass of the draft.
        acceptance: Mean of the answers.
        spread: By how much answers differ from it, uniformly.
        verify_cost: v(n) of the target.
        passes: Mean passes for a token.
        confidence: How much of the way from the true acceptance to 1 the draft's confidence is.
        reading: Cost of a further token in a pass of the draft, as a share of the pass.
        unfinished: Share of places where what the draft writes gives no token; it writes `UNFINISHED_PASSES` at most.
    """

    pass_cost: float
    acceptance: float
    spread: float = 0.1
    verify_cost: Costs = INT8
    passes: float = 1.0
    confidence: float = 0.2
    reading: float = 0.1
    unfinished: float = 0.0


@dataclass
class Answer:
    """An answer, with what the draft would propose at each of its places."""

    seed: int
    drafts: Drafts
    accepted: list[bool] = field(init=False)
    confidence: list[float] = field(init=False)
    passes: list[int] = field(init=False)
    """0: the draft finds no token here."""

    def __post_init__(self) -> None:
        chance, drafts = random.Random(self.seed), self.drafts
        mean = min(max(drafts.acceptance + drafts.spread * chance.uniform(-1, 1), 0.02), 0.98)
        self.accepted, self.confidence, self.passes = [], [], []
        for _ in range(2 * NUM_TOKENS):
            # Half of the places are easy, and the draft knows which.
            acceptance = mean + 0.6 * min(mean, 1 - mean) * chance.choice((1, -1))
            self.accepted.append(chance.random() < acceptance)
            sure = acceptance + (1 - acceptance) * drafts.confidence
            self.confidence.append(min(max(sure + chance.gauss(0, 0.08), 0.02), 0.999))
            num_passes = int(drafts.passes) + (chance.random() < drafts.passes % 1)
            self.passes.append(0 if drafts.unfinished and chance.random() < drafts.unfinished else num_passes)


class Clock:
    """Gives passes their measured time: the cost with noise."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self._noise, self._chance = noise, random.Random(seed)
        self._seen: set[object] = set()

    def disturbed(self, cost: float, kind: object) -> float:
        """Returns the time of a pass that costs `cost`; `kind` says what may be slow at first use."""
        noise, chance = self._noise, self._chance
        factor = max(chance.gauss(1, noise.spread), 0.9)
        if chance.random() < noise.outliers:
            factor *= chance.uniform(1.5, 4)
        if kind not in self._seen:
            factor *= noise.first_use
            self._seen.add(kind)
        return cost * factor


def run(answer: Answer, policy: LengthPolicy, clock: Clock, limit: int = 16) -> float:
    """Returns the steps of an answer by the costs, without noise: the policy sees it, chance does not decide."""
    drafts = answer.drafts
    policy.start_text(Prefill(NUM_PROMPT, 0, 5.0, drafts.pass_cost * (1 + drafts.reading * NUM_PROMPT)))
    place = index = num_missed = 0
    steps = 0.0
    while place < NUM_TOKENS:
        policy.start_round()
        count = num_passes = 0
        while count < min(limit, NUM_TOKENS - place - 1) and policy.should_draft():
            if not answer.passes[place + count]:
                num_passes += write_unfinished(policy, answer.confidence[place + count])
                if not count:
                    policy.on_token(0.0, 0)
                break
            policy.on_token(answer.confidence[place + count], answer.passes[place + count])
            num_passes += answer.passes[place + count]
            count += 1
        read = drafts.pass_cost * drafts.reading * max(num_missed, 0) if num_passes else 0.0
        drafting, verify = num_passes * drafts.pass_cost + read, drafts.verify_cost(count + 1)
        steps += drafting + verify
        right = 0
        while right < count and answer.accepted[place + right]:
            right += 1
        policy.observe(
            Round(
                index,
                (1,) * count,
                right,
                1,
                0,
                clock.disturbed(drafting, "draft") if num_passes else 0.0,
                clock.disturbed(verify, count),
                0.0,
                "model" if count else None,
                num_passes=num_passes or None,
            )
        )
        num_missed = 0 if num_passes else num_missed + 1
        place += right + 1
        index += 1
    return steps


def write_unfinished(policy: LengthPolicy, confidence: float) -> int:
    """Writes what gives no token, as long as the policy wants. Returns the passes of the draft."""
    for num_passes in range(1, UNFINISHED_PASSES + 1):
        policy.on_pass(confidence)
        if num_passes == UNFINISHED_PASSES or not policy.should_draft():
            break
    return num_passes


def knowing(drafts: Drafts, acceptance: float | None = None) -> CostAwareLength:
    """A policy that knows the costs from earlier runs."""
    costs = CostTable({n: drafts.verify_cost(n) for n in (*range(1, 10), 13, 17)})
    return CostAwareLength(costs, DraftCost(drafts.pass_cost, costs), acceptance)


def fresh(drafts: Drafts) -> CostAwareLength:
    """A policy that knows nothing but the sizes of the models."""
    costs = CostTable()
    return CostAwareLength(costs, DraftCost(None, costs, 0.8 * drafts.pass_cost))


@dataclass(frozen=True)
class Speeds:
    """Tokens per step of the target, means of many runs.

    Args:
        first: Of the first answer.
        later: Of the other ones.
        worst: Of later ones, the tenth percentile of pairs of answers.
        best: Of later ones, at the best fixed length; 1 if none pays.
    """

    first: float
    later: float
    worst: float
    best: float


def speeds(
    drafts: Drafts,
    make: Callable[[Drafts], CostAwareLength],
    noise: Noise | None = None,
    seeds: Sequence[int] = range(40),
    num_answers: int = 5,
) -> Speeds:
    """Runs answers one after another with one policy, as a program does."""
    first: list[float] = []
    later: list[float] = []
    pairs: list[float] = []
    fixed = dict.fromkeys(LENGTHS, 0.0)
    for seed in seeds:
        policy, clock = make(drafts), Clock(noise or Noise(), seed)
        answers = [Answer(1000 * seed + number, drafts) for number in range(num_answers)]
        steps = [run(answer, policy, clock) for answer in answers]
        first.append(steps[0])
        later += steps[1:]
        pairs += [steps[n] + steps[n + 1] for n in range(1, num_answers - 1, 2)]
        for length in LENGTHS:
            fixed[length] += sum(run(answer, FixedLength(), Clock(Noise(), 0), length) for answer in answers[1:])
    num_tokens = NUM_TOKENS * (num_answers - 1) * len(seeds)
    return Speeds(
        NUM_TOKENS / fmean(first),
        NUM_TOKENS / fmean(later),
        2 * NUM_TOKENS / sorted(pairs)[int(0.9 * len(pairs))],
        max(1.0, num_tokens / min(fixed.values())),
    )


def text(pass_cost: float, acceptance: float, passes: float = 1.2) -> Drafts:
    """A draft that writes text."""
    return Drafts(pass_cost, acceptance, passes=passes)


GRID = {
    **{
        f"{cost} {acceptance}": Drafts(cost, acceptance)
        for cost in (0.2, 0.3, 0.4, 0.6)
        for acceptance in (0.3, 0.45, 0.6, 0.75, 0.85)
    },
    **{
        f"text {cost} {acceptance}": text(cost, acceptance)
        for cost in (0.2, 0.3, 0.4, 0.6)
        for acceptance in (0.3, 0.45, 0.6, 0.75, 0.85)
    },
    **{
        f"nf4 {cost} {acceptance}": Drafts(cost, acceptance, verify_cost=NF4)
        for cost in (0.26,)
        for acceptance in (0.3, 0.5, 0.7)
    },
    **{
        f"bf16 {cost} {acceptance}": Drafts(cost, acceptance, verify_cost=BF16)
        for cost in (0.2, 0.4)
        for acceptance in (0.3, 0.5, 0.7)
    },
}
MAKERS: dict[str, Callable[[Drafts], CostAwareLength]] = {
    "costs known": knowing,
    "all known": lambda drafts: knowing(drafts, drafts.acceptance),
    "nothing known": fresh,
}
NOISES = {"costs known": Noise(), "all known": Noise(), "nothing known": Noise(first_use=2.0)}


def main() -> None:
    """Print the table."""
    print(f"{'draft':<16}{'best':>6}", *(f"{name:>22}" for name in MAKERS))
    print(f"{'':<22}", *(f"{'first':>8}{'later':>7}{'p10':>7}" for _ in MAKERS))
    worst = {name: [9.0, 9.0, 9.0, 9.0] for name in MAKERS}
    for name, drafts in GRID.items():
        cells = []
        for maker, make in MAKERS.items():
            found = speeds(drafts, make, NOISES[maker])
            cells.append(f"{found.first:>8.3f}{found.later:>7.3f}{found.worst:>7.3f}")
            low = worst[maker]
            if found.best < 1.005:
                low[0], low[1] = min(low[0], found.first), min(low[1], found.later)
            elif found.best >= 1.15:
                low[2], low[3] = min(low[2], found.first / found.best), min(low[3], found.later / found.best)
        print(f"{name:<16}{found.best:>6.3f}", *cells, flush=True)
    for maker, low in worst.items():
        print(maker, "losing: first, later; winning, of best: first, later", [round(x, 3) for x in low])


if __name__ == "__main__":
    main()
