"""Checks the distribution of whole generations by enumerating every outcome of every random choice, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from specgen.core.events import Notice
from specgen.core.settings import SamplingSettings
from specgen.engine import target_pass
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.model import MaskedDrafter, ModelDrafter
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import Sampler, token_distributions
from specgen.engine.verification import Draft
from tests.engine.distributions import distributions_made_once
from tests.fakes import ScriptedDrafter, ids_of, rounds_of, run_events

PROMPT = [0, 1]
PROCESSORS = {
    "plain": SamplingSettings(temperature=1.0),
    "temperature": SamplingSettings(temperature=0.6),
    "top-k": SamplingSettings(temperature=1.0, top_k=2),
    "top-p": SamplingSettings(temperature=1.3, top_p=0.75),
    "min-p": SamplingSettings(temperature=0.9, min_p=0.3),
    "penalty": SamplingSettings(temperature=1.0, repetition_penalty=1.7),
    "all": SamplingSettings(temperature=0.8, top_k=3, top_p=0.95, min_p=0.05, repetition_penalty=1.3),
    "greedy": SamplingSettings(temperature=0.0, repetition_penalty=1.3),
}


@cache
def table(vocab_size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64) * 1.5


def target_distribution(
    logits: Tensor, sampling: SamplingSettings, ends: Sequence[int] = (), num_tokens: int = 3
) -> dict[tuple[int, ...], float]:
    """Computes the distribution of the next tokens without speculation."""
    distribution: dict[tuple[int, ...], float] = {}

    def grow(text: tuple[int, ...], weight: float) -> None:
        new = text[len(PROMPT) :]
        if len(new) == num_tokens or (new and new[-1] in ends):
            distribution[new] = distribution.get(new, 0.0) + weight
            return
        seen = torch.zeros(1, logits.shape[1], dtype=torch.bool)
        seen[0, list(text)] = True
        row = token_distributions(logits[text[-1]].unsqueeze(0), sampling, seen)
        probs = torch.nn.functional.one_hot(row.ids, logits.shape[1]).double() if row.probs is None else row.probs
        for token, probability in enumerate(probs[0].tolist()):
            if probability > 0:
                grow((*text, token), weight * probability)

    grow(tuple(PROMPT), 1.0)
    return distribution


@dataclass(frozen=True)
class Case:
    """A way of drafting; `make` builds it around the given randomness."""

    name: str

    def make(self, vocab_size: int, sampling: SamplingSettings, randomness: Randomness) -> Drafter:
        if self.name == "none":
            return NoDrafter()
        if self.name == "fixed":
            return ScriptedDrafter(lambda ids, limit: [(ids[-1] + step) % vocab_size for step in range(1, limit + 1)])
        narrow = vocab_size - 1 if self.name == "narrower vocabulary" else vocab_size
        seed = 1 if self.name == "same model" else 2
        model = TableModel(table(vocab_size, seed)[:, :narrow])
        if self.name == "stops when unsure":
            return StopsWhenUnsure(model, vocab_size, Sampler(sampling, randomness))
        if self.name == "subset":
            # A draft over some of the ids, as one with a shortened head: the rest has probability zero.
            columns = torch.tensor([0, vocab_size - 1])
            few = ColumnsOf(table(vocab_size, 2), columns)
            return ModelDrafter(few, vocab_size, Sampler(sampling, randomness), columns=columns)
        if self.name == "masked ids":
            masked = torch.tensor([1, vocab_size - 1])
            return MaskedDrafter(model, vocab_size, Sampler(sampling, randomness), None, masked)
        if self.name == "greedy draft":
            sampling = SamplingSettings(repetition_penalty=sampling.repetition_penalty)
        return ModelDrafter(model, vocab_size, Sampler(sampling, randomness))


class ColumnsOf(TableModel):
    """A table with logits for some of its columns only."""

    def __init__(self, table: Tensor, columns: Tensor) -> None:
        super().__init__(table)
        self.columns = columns
        self.vocab_size = len(columns)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        return super().logits(ids, num_last, tail)[:, self.columns]


class StopsWhenUnsure(ModelDrafter):
    """A model draft under a policy that looks at confidences, as `auto` does: what was drawn is kept."""

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        return super().propose(ids, limit, _UntilUnsure())


class _UntilUnsure(FixedLength):
    uses_confidence = True

    def __init__(self) -> None:
        self._confidences: list[float] = []

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        self._confidences.append(confidence)

    def should_draft(self) -> bool:
        return all(confidence > 0.55 for confidence in self._confidences)


CASES = [
    Case(n)
    for n in (
        *("none", "fixed", "same model", "other model", "greedy draft", "narrower vocabulary", "stops when unsure"),
        *("masked ids", "subset"),
    )
]


def speculative_distribution(
    case: Case,
    vocab_size: int,
    num_draft_tokens: int,
    sampling: SamplingSettings,
    ends: Sequence[int] = (),
    num_tokens: int = 3,
    verification: str = "block",
) -> dict[tuple[int, ...], float]:
    logits = table(vocab_size, 1)

    def run(randomness: ScriptedRandomness) -> tuple[int, ...]:
        events = run_events(
            TableModel(logits),
            case.make(vocab_size, sampling, randomness),
            PROMPT,
            max_new_tokens=num_tokens,
            num_draft_tokens=num_draft_tokens,
            sampling=sampling,
            randomness=randomness,
            end_ids=ends,
            verification=verification,
        )
        assert not any(isinstance(event, Notice) for event in events), "a dropped drafter proves nothing"
        return tuple(ids_of(events))

    distribution: dict[tuple[int, ...], float] = defaultdict(float)
    with distributions_made_once():
        for probability, text in every_outcome(run):
            distribution[text] += probability
    return distribution


def assert_same_distribution(found: dict[tuple[int, ...], float], wanted: dict[tuple[int, ...], float]) -> None:
    assert abs(sum(found.values()) - 1) < 1e-12
    for text in {*found, *wanted}:
        assert abs(found.get(text, 0.0) - wanted.get(text, 0.0)) < 1e-12, text


# The rules see distributions only: in the fast lane one draft model meets each processor, and each drafter all at once.
def further(case: Case, processors: str, rule: str) -> list[pytest.MarkDecorator]:
    is_kept = processors in ("plain", "all", "greedy") or (case.name == "other model" and rule == "block")
    return [] if is_kept else [pytest.mark.thorough]


# The rules differ for drafts that were drawn: not for point masses, nor for a greedy target. One draft model meets each
# processor with both of them, and each drafter the plain distribution and all processors at once.
POINT_MASSES = ("none", "fixed", "greedy draft")
OTHER_MODEL = CASES[3]
RULES = [
    pytest.param(case, processors, rule, id=f"{case.name}-{processors}-{rule}", marks=further(case, processors, rule))
    for case in CASES
    for processors in PROCESSORS
    for rule in ("block", "token")
    if rule == "block" or (case.name not in POINT_MASSES and (processors in ("plain", "all") or case is OTHER_MODEL))
]


@pytest.mark.parametrize(("case", "processors", "verification"), RULES)
@pytest.mark.fast(
    without=(
        "*-all-token",
        "*-plain-token",
        "other model-penalty-*",
        "other model-temperature-*",
        "stops when unsure-plain-*",
        "subset-plain-*",
        "masked ids-plain-*",
        "narrower vocabulary-plain-*",
        "greedy draft-plain-*",
        "same model-plain-*",
    )
)
def test_every_processor_keeps_the_distribution_of_three_tokens(case: Case, processors: str, verification: str) -> None:
    sampling = PROCESSORS[processors]

    found = speculative_distribution(case, 3, 2, sampling, verification=verification)

    assert_same_distribution(found, target_distribution(table(3, 1), sampling))


@pytest.mark.parametrize("case", [CASES[1], OTHER_MODEL], ids=lambda case: case.name)
@pytest.mark.parametrize("processors", ["plain", "all"])
@pytest.mark.parametrize("rule", ["block", "token"])
def test_rows_computed_at_once_keep_the_distribution(
    case: Case, processors: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on devices, where a read waits."""
    monkeypatch.setattr(target_pass, "is_on_host", lambda tensor: False)

    found = speculative_distribution(case, 3, 2, PROCESSORS[processors], verification=rule)

    assert_same_distribution(found, target_distribution(table(3, 1), PROCESSORS[processors]))


SIZES = [(3, 1, 3), (4, 1, 3), (4, 2, 3), (5, 1, 2)]
"""Vocabulary, draft tokens, tokens."""


@pytest.mark.parametrize(
    ("case", "vocab_size", "num_draft_tokens", "num_tokens"),
    [
        pytest.param(case, *sizes, id=f"{case.name}-{'-'.join(map(str, sizes))}")
        for case in CASES[1:]
        for sizes in SIZES
        # A thousand outcomes: one drafter stands for the others.
        if sizes != (4, 2, 3) or case is OTHER_MODEL
    ],
)
@pytest.mark.fast("*-3-1-3", "other model-5-1-2", "subset-5-1-2")
def test_every_draft_length_and_vocabulary_keeps_the_distribution(
    case: Case, vocab_size: int, num_draft_tokens: int, num_tokens: int
) -> None:
    sampling = PROCESSORS["plain"]

    found = speculative_distribution(case, vocab_size, num_draft_tokens, sampling, num_tokens=num_tokens)

    assert_same_distribution(found, target_distribution(table(vocab_size, 1), sampling, num_tokens=num_tokens))


@pytest.mark.thorough
@pytest.mark.parametrize(("case", "vocab_size"), [(CASES[1], 4), (OTHER_MODEL, 3), (CASES[6], 3)])
def test_three_draft_tokens_keep_the_distribution_of_four(case: Case, vocab_size: int) -> None:
    sampling = PROCESSORS["all"]

    found = speculative_distribution(case, vocab_size, 3, sampling, num_tokens=4)

    assert_same_distribution(found, target_distribution(table(vocab_size, 1), sampling, num_tokens=4))


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
@pytest.mark.fault("F77")
@pytest.mark.fast(without=("subset", "same model", "greedy draft"))
def test_an_end_token_inside_a_draft_keeps_the_distribution(case: Case) -> None:
    sampling = PROCESSORS["plain"]

    found = speculative_distribution(case, 3, 2, sampling, ends=[2])

    assert_same_distribution(found, target_distribution(table(3, 1), sampling, ends=[2]))


@pytest.mark.thorough
def test_block_verification_keeps_more_than_token_verification() -> None:
    """Compares the expected length of a round over all outcomes, on a pair where the paper's inequality is strict."""
    expected = {}
    for rule in ("token", "block"):

        def run(randomness: ScriptedRandomness, rule: str = rule) -> int:
            drafter = CASES[3].make(3, PROCESSORS["plain"], randomness)
            events = run_events(
                TableModel(table(3, 1)),
                drafter,
                PROMPT,
                max_new_tokens=4,
                num_draft_tokens=3,
                sampling=PROCESSORS["plain"],
                randomness=randomness,
                verification=rule,
                num_events=2,
            )
            # `num_events` is the prefill and one round; later rounds do not matter here.
            return rounds_of(events)[0].num_accepted

        expected[rule] = sum(probability * accepted for probability, accepted in every_outcome(run))

    assert expected["block"] > expected["token"] + 0.01
