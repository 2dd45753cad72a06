"""Replays texts on a simulated clock, to measure what a policy gains on a machine with given costs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from specgen.core.events import DraftSource, Round
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.drafters.lookup import LookupDrafter

TRACES = Path(__file__).parent / "traces.jsonl"
Costs = Callable[[int], float]
Kind = Literal["none", "lookup", "model", "combined"]


@dataclass(frozen=True)
class Trace:
    """A greedy answer, and what a draft model would have written at each of its places.

    `ids` are prompt and answer; `draft_ids` and `confidence` belong to the answer's places.
    """

    category: str
    num_prompt: int
    ids: tuple[int, ...]
    draft_ids: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()

    @property
    def num_new(self) -> int:
        return len(self.ids) - self.num_prompt


def recorded_traces() -> list[Trace]:
    """Answers of Qwen2.5-Coder 1.5B in bfloat16, with the 0.5B model's guesses."""
    records = [json.loads(line) for line in TRACES.read_text().splitlines()]
    return [
        Trace(
            record["category"],
            len(record["prompt_ids"]),
            (*record["prompt_ids"], *record["token_ids"]),
            tuple(record["draft_ids"]),
            tuple(record["confidence"]),
        )
        for record in records
    ]


def edited_trace(seed: int, share_changed: float, num_tokens: int = 300) -> Trace:
    """A prompt of words that repeat as words do, and an answer that is a copy of it with some places changed."""
    generator = random.Random(seed)
    prompt = [int(generator.paretovariate(0.8)) % 500 for _ in range(num_tokens)]
    answer = [token if generator.random() >= share_changed else generator.randrange(500, 600) for token in prompt]
    return _with_model(generator, "edit", prompt, answer)


def free_trace(seed: int, num_tokens: int = 300) -> Trace:
    """Words that repeat as words do, and nothing more: matches are short and mean little."""
    generator = random.Random(seed)
    words = [int(generator.paretovariate(0.8)) % 500 for _ in range(2 * num_tokens)]
    return _with_model(generator, "chat", words[:num_tokens], words[num_tokens:])


def _with_model(generator: random.Random, category: str, prompt: list[int], answer: list[int]) -> Trace:
    """With a model that is right in three of four places and knows how sure to be."""
    confidence = [generator.choice((0.95, 0.9, 0.7, 0.45)) for _ in answer]
    guesses = [token if generator.random() < sure else -2 for token, sure in zip(answer, confidence, strict=True)]
    return Trace(category, len(prompt), (*prompt, *answer), tuple(guesses), tuple(confidence))


def table(costs: Mapping[int, float]) -> Costs:
    """v(n) from measured lengths, straight lines between and after them."""
    known = sorted(costs)

    def cost(n: int) -> float:
        below = max((k for k in known[:-1] if k <= n), default=known[0])
        above = next(k for k in known if k > below)
        return costs[below] + (costs[above] - costs[below]) * (n - below) / (above - below)

    return cost


# v(n) as measured on two cores, in steps of the target.
BF16 = table({1: 1.0, 2: 1.0, 4: 1.05, 8: 1.15, 16: 1.5})
NF4 = table({1: 1.0, 2: 1.02, 3: 1.12, 4: 1.28, 5: 1.66, 8: 1.9, 16: 3.0})
LLAMA = table({1: 1.0, 2: 1.6, 4: 2.8, 8: 6.3})
FP32 = table({1: 1.0, 2: 2.1, 3: 3.0, 4: 2.1, 8: 2.0, 16: 2.6})


@dataclass(frozen=True)
class Machine:
    """What passes cost, in steps of the target: over n tokens, a draft token, a token the draft model missed."""

    verify_cost: Costs
    draft_cost: float = 0.0
    reading_cost: float = 0.0


def replay(trace: Trace, machine: Machine, kind: Kind, draft_length: LengthPolicy, limit: int = 16) -> list[Round]:
    """The loop's rounds on a text that is known."""
    lookup, rounds = LookupDrafter(), list[Round]()
    place = num_missed = 0
    while place < trace.num_new:
        draft_length.start_round()
        room = min(limit, trace.num_new - place - 1)
        draft, source, seconds = _drafted(trace, machine, kind, draft_length, lookup, place, room)
        if source == "model":
            seconds += num_missed * machine.reading_cost
        truth = trace.ids[trace.num_prompt + place :]
        num_right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(draft, truth, strict=False))))
        verify = machine.verify_cost(len(draft) + 1)
        round_ = Round(
            len(rounds), tuple(draft), num_right, truth[num_right], 0, seconds, verify, 0.0, source if draft else None
        )
        draft_length.observe(round_)
        rounds.append(round_)
        place += num_right + 1
        num_missed = 0 if source == "model" else num_missed + num_right + 1
    return rounds


def _drafted(
    trace: Trace, machine: Machine, kind: Kind, draft_length: LengthPolicy, lookup: LookupDrafter, place: int, room: int
) -> tuple[Sequence[int], DraftSource | None, float]:
    """A draft, what made it, and what that cost."""
    match = (
        lookup.match(trace.ids[: trace.num_prompt + place], room) if room and kind in ("lookup", "combined") else None
    )
    num_taken = 0 if match is None else draft_length.tokens_to_take(match, has_draft_model=kind == "combined")
    if match is not None and num_taken:
        return match.ids[:num_taken], "lookup", 0.0
    num_drawn = 0
    while kind in ("model", "combined") and num_drawn < room and draft_length.should_draft():
        draft_length.on_token(trace.confidence[place + num_drawn])
        num_drawn += 1
    draft = trace.draft_ids[place : place + num_drawn]
    return draft, "model" if draft else None, num_drawn * machine.draft_cost


def speed(
    trace: Trace, machine: Machine, kind: Kind, draft_length: LengthPolicy | None = None, limit: int = 16
) -> float:
    """Tokens per step of the target; without `draft_length`, of a policy that knows nothing yet."""
    policy = draft_length or CostAwareLength(CostTable(), DraftCost())
    rounds = replay(trace, machine, kind, policy, limit)
    return sum(len(r.token_ids) for r in rounds) / sum(r.seconds for r in rounds)
