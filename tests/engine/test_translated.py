"""Drafts with another vocabulary: the text keeps the target's distribution, whatever the two vocabularies share."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import DraftError
from specgen.core.events import Notice
from specgen.core.settings import SamplingSettings
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.drafters.translated import SharedTokenDrafter, TextDrafter, TranslatedModel
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.randomness import PositionNoise, TorchRandomness
from specgen.engine.sampling import Sampler
from specgen.engine.verification import Draft
from tests.engine.distributions import distributions_made_once
from tests.engine.test_enumeration import (
    PROCESSORS,
    PROMPT,
    assert_same_distribution,
    table,
    target_distribution,
)
from tests.engine.translations import StringTranslation
from tests.fakes import CPU, GREEDY, ids_of, rounds_of, run_events, sampler
from tests.profiles import num_examples, thorough_except

THOROUGH = pytest.mark.thorough
PAIRS: dict[str, tuple[list[str], list[str]]] = {
    "the same tokens in another order": (["a", "b", "c"], ["c", "a", "b"]),
    "partial overlap": (["a", "b", "ab"], ["bb", "b", "x", "a"]),
    "one token in common": (["a", "b", "ab"], ["ab", "c"]),
    "disjoint": (["a", "b", "c"], ["x", "yy", "z"]),
    "the draft's inside the target's": (["a", "b", "ba"], ["b", "a"]),
    "the target's inside the draft's": (["a", "b", "c"], ["aa", "c", "b", "a", "ac"]),
}


def drafter_of(
    kind: str, tokens: tuple[list[str], list[str]], own: Sampler, seed: int = 2
) -> SharedTokenDrafter | TextDrafter:
    target, draft = tokens
    translation = StringTranslation(target, draft)
    shared = translation.shared if kind == "shared" else None
    model = TranslatedModel(TableModel(table(len(draft), seed)), translation, shared)
    return (SharedTokenDrafter if kind == "shared" else TextDrafter)(model, len(target), own)


def distribution_of(
    kind: str, tokens: tuple[list[str], list[str]], sampling: SamplingSettings, verification: str = "block"
) -> dict[tuple[int, ...], float]:
    def run(randomness: ScriptedRandomness) -> tuple[int, ...]:
        events = run_events(
            TableModel(table(len(tokens[0]), 1)),
            drafter_of(kind, tokens, Sampler(sampling, randomness)),
            PROMPT,
            max_new_tokens=3,
            num_draft_tokens=2,
            sampling=sampling,
            randomness=randomness,
            verification=verification,
        )
        assert not any(isinstance(event, Notice) for event in events), "a dropped drafter proves nothing"
        return tuple(ids_of(events))

    found: dict[tuple[int, ...], float] = defaultdict(float)
    with distributions_made_once():
        for probability, text in every_outcome(run):
            found[text] += probability
    return found


# The processors see logits over the shared tokens, whatever the rule: `test_enumeration` combines them with both.
# In the fast lane each processor meets one pair, and each pair the sampling with all processors.
FAST = ("all",)
RULES = [
    pytest.param(pair, processors, rule, marks=() if pair == "partial overlap" or processors in FAST else THOROUGH)
    for pair in PAIRS
    for processors in PROCESSORS
    for rule in ("block", "token")
    if rule == "block" or processors in ("plain", "all")
]


@pytest.mark.parametrize(("pair", "processors", "verification"), RULES)
@pytest.mark.fast(
    "partial overlap-top*",
    "partial overlap-greedy*",
    "partial overlap-plain-block",
    "partial overlap-all-token",
    "one token*",
    "disjoint*",
    "the draft's inside*-all-block",
)
def test_shared_tokens_keep_the_distribution(pair: str, processors: str, verification: str) -> None:
    sampling = PROCESSORS[processors]

    found = distribution_of("shared", PAIRS[pair], sampling, verification)

    assert_same_distribution(found, target_distribution(table(3, 1), sampling))


@pytest.mark.parametrize(
    ("pair", "processors"),
    [
        pytest.param(pair, processors, marks=() if pair == "partial overlap" or processors in FAST else THOROUGH)
        for pair in ("partial overlap", "disjoint", "the target's inside the draft's")
        for processors in PROCESSORS
    ],
)
def test_text_drafts_keep_the_distribution(pair: str, processors: str) -> None:
    sampling = PROCESSORS[processors]

    found = distribution_of("text", PAIRS[pair], sampling)

    assert_same_distribution(found, target_distribution(table(3, 1), sampling))


@pytest.mark.parametrize("seed", thorough_except(range(3), range(6)))
@pytest.mark.parametrize("kind", ["shared", "text"])
def test_random_vocabularies_keep_the_distribution(kind: str, seed: int) -> None:
    chosen = random.Random(seed)
    strings = ["a", "b", "aa", "ab", "ba", "bb"]
    tokens = chosen.sample(strings, 3), chosen.sample(strings, chosen.choice([2, 3, 4]))

    found = distribution_of(kind, tokens, PROCESSORS["all"])

    assert_same_distribution(found, target_distribution(table(3, 1), PROCESSORS["all"]))


def test_a_draft_ends_where_its_best_token_is_not_shared() -> None:
    tokens = ["a", "b"], ["a", "b", "x"]
    likes_x_after_b = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    translation = StringTranslation(*tokens)
    model = TranslatedModel(TableModel(likes_x_after_b), translation, translation.shared)

    draft = SharedTokenDrafter(model, 2, sampler()).propose([0, 0], 4, FixedLength())

    assert draft.ids.tolist() == [1]
    assert model.model.cached_ids == [0, 0, 1], "the pass after the last token decides that the draft ends"


def test_a_whole_shared_vocabulary_drafts_like_the_same_one() -> None:
    """A permuted vocabulary changes no proposal: the oracle is the drafter for equal vocabularies."""
    tokens = ["a", "b", "c", "d"], ["d", "c", "b", "a"]
    logits = table(4, 2)
    order = torch.tensor([3, 2, 1, 0])
    translation = StringTranslation(*tokens)
    permuted = TableModel(logits[order][:, order])
    for sampling in (GREEDY, SamplingSettings(temperature=1.0, seed=3)):
        plain = ModelDrafter(TableModel(logits), 4, sampler(sampling, 5))
        shared = SharedTokenDrafter(TranslatedModel(permuted, translation, translation.shared), 4, sampler(sampling, 5))
        permuted.rewind(0)

        expected, found = (drafter.propose([0, 1], 4, FixedLength()) for drafter in (plain, shared))

        assert found.ids.tolist() == expected.ids.tolist()
        if expected.probs is not None:
            assert found.probs is not None
            assert torch.allclose(found.probs, expected.probs)


def test_the_same_text_with_any_vocabulary() -> None:
    sampling = SamplingSettings(temperature=1.0, seed=7, same_text=True)

    def text(kind: str | None) -> list[int]:
        noise = PositionNoise(7, 3)
        own = Sampler(sampling, TorchRandomness(0, CPU), noise)
        drafter = LookupDrafter() if kind is None else drafter_of(kind, PAIRS["partial overlap"], own)
        return ids_of(run_events(TableModel(table(3, 1)), drafter, PROMPT, sampling=sampling, noise=noise))

    assert text("shared") == text("text") == text(None)


strings = st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=6, unique=True)


@given(target=strings, draft=strings, kind=st.sampled_from(["shared", "text"]), data=st.data())
@settings(max_examples=num_examples(60), deadline=None)
def test_greedy_text_and_caches_survive_every_rollback(
    target: list[str], draft: list[str], kind: str, data: st.DataObject
) -> None:
    """`TableModel` asserts that its cache is a prefix of what it reads; the text is the target's own."""
    length = data.draw(st.integers(1, 5))
    own = sampler()
    seed = data.draw(st.integers(0, 3))
    drafter = drafter_of(kind, (target, draft), own, seed)
    prompt = data.draw(st.lists(st.integers(0, len(target) - 1), min_size=1, max_size=5))
    options = {"max_new_tokens": 12, "num_draft_tokens": length, "strict": True}

    found = ids_of(run_events(TableModel(table(len(target), 1)), drafter, prompt, **options))
    # A chat turn taken back at any border, then another text.
    drafter.rewind(data.draw(st.integers(0, len(prompt) + len(found))))
    other = [*prompt[:1], *found[: data.draw(st.integers(0, 5))]]
    again = ids_of(run_events(TableModel(table(len(target), 1)), drafter, other, **options))

    assert found == greedy(len(target), prompt)
    assert again == greedy(len(target), other)


def greedy(vocab_size: int, prompt: Sequence[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(table(vocab_size, 1)[ids[-1]].argmax()))
    return ids[len(prompt) :]


def test_a_text_draft_proposes_all_that_it_wrote() -> None:
    """The draft writes a, b, a, b ...; the target has `ab`, and an `a` at the end is proposed."""
    tokens = ["a", "b", "ab"], ["b", "a"]
    model = TranslatedModel(TableModel(torch.tensor([[0.0, 9.0], [9.0, 0.0]])), StringTranslation(*tokens))

    draft = TextDrafter(model, 3, sampler()).propose([1], 3, FixedLength())

    assert draft.ids.tolist() == [2, 2, 0]
    assert (draft.num_passes, draft.probs) == (5, None)


def test_a_text_draft_with_the_targets_tokens_takes_a_pass_for_each() -> None:
    """The oracle is the drafter for equal vocabularies."""
    tokens = ["a", "b", "c", "d"]
    model = TranslatedModel(TableModel(table(4, 2)), StringTranslation(tokens, tokens))

    expected = ModelDrafter(TableModel(table(4, 2)), 4, sampler()).propose([0, 1], 4, FixedLength())
    found = TextDrafter(model, 4, sampler()).propose([0, 1], 4, FixedLength())

    assert found.ids.tolist() == expected.ids.tolist()
    assert found.num_passes == 4


class _Noting(FixedLength):
    """Notes what a draft reports."""

    uses_confidence = True

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[str, float]] = []

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        self.reports.append((f"token {num_passes}", confidence))

    def on_pass(self, confidence: float) -> None:
        self.reports.append(("pass", confidence))


def test_a_text_draft_reports_each_pass_and_token_once() -> None:
    """The draft writes `a`, `b` and `cd`. The target has no token `a`, but has `ab`. It writes `cd` in two tokens."""
    tokens = ["ab", "c", "d", "x"], ["x", "a", "b", "cd"]
    rows = torch.log(torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.6, 0.2], [0.1, 0.2, 0.2, 0.5], [0.25] * 4]))
    policy = _Noting()

    draft = TextDrafter(TranslatedModel(TableModel(rows), StringTranslation(*tokens)), 4, sampler()).propose(
        [3], 3, policy
    )

    assert draft.ids.tolist() == [0, 1, 2]
    assert [kind for kind, _ in policy.reports] == ["pass", "token 1", "token 1", "token 0"]
    assert [confidence for _, confidence in policy.reports] == pytest.approx([0.7, 0.42, 0.5**0.5, 0.5**0.5])


def test_a_text_draft_ends_at_the_draft_models_end_token() -> None:
    tokens = ["a", "b", "<end>"], ["a", "<eos>"]
    ends_after_a = TableModel(torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
    model = TranslatedModel(ends_after_a, StringTranslation(*tokens, ends=(1, 2)))

    assert TextDrafter(model, 3, sampler()).propose([0], 5, FixedLength()).ids.tolist() == [2]


def test_a_text_that_the_target_can_not_write_is_no_endless_draft() -> None:
    tokens = ["a", "b"], ["a", "x"]
    only_x = TableModel(torch.tensor([[0.0, 9.0], [0.0, 9.0]]))
    drafter = TextDrafter(TranslatedModel(only_x, StringTranslation(*tokens)), 2, sampler())

    assert drafter.propose([0], 4, FixedLength()).ids.tolist() == []
    assert only_x.num_forwards < 10


@pytest.mark.parametrize("kind", ["shared", "text"])
def test_the_window_is_counted_in_the_drafts_tokens(kind: str) -> None:
    tokens = ["abab", "a", "b"], ["a", "b"]
    translation = StringTranslation(*tokens)
    inner = TableModel(table(2, 2))
    model = TranslatedModel(inner, translation, translation.shared if kind == "shared" else None, max_positions=9)
    drafter = (SharedTokenDrafter if kind == "shared" else TextDrafter)(model, 3, sampler())

    assert drafter.propose([0, 0, 1], 4, FixedLength()).ids.tolist() == []
    drafter.propose([0, 0], 4, FixedLength())
    assert inner.length <= 9


@pytest.mark.parametrize("kind", ["shared", "text"])
def test_a_draft_of_nan_is_an_error_of_the_drafter(kind: str) -> None:
    tokens = ["a", "b"], ["a", "b", "x"]
    translation = StringTranslation(*tokens)
    broken = TableModel(torch.full((3, 3), float("nan")))
    model = TranslatedModel(broken, translation, translation.shared if kind == "shared" else None)
    drafter = (SharedTokenDrafter if kind == "shared" else TextDrafter)(model, 2, sampler())

    with pytest.raises(DraftError):
        drafter.propose([0], 2, FixedLength())


def test_lookup_works_next_to_a_translated_model() -> None:
    own = sampler()
    drafter = CombinedDrafter(LookupDrafter(), drafter_of("shared", PAIRS["partial overlap"], own))

    events = run_events(TableModel(table(3, 1)), drafter, PROMPT, max_new_tokens=20)

    assert ids_of(events) == greedy(3, PROMPT) + ids_of(events)[12:]
    assert any(round_.source == "lookup" for round_ in rounds_of(events))


def a_token_dropped_after_it_was_drawn(plant: pytest.MonkeyPatch) -> None:
    original = SharedTokenDrafter._propose_by_logits

    def dropping(self: SharedTokenDrafter, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        draft = original(self, ids, limit, draft_length)
        keep = len(draft.ids) - int(bool(len(draft.ids)) and int(draft.ids[-1]) == 0)
        return Draft(draft.ids[:keep], None if draft.probs is None or not keep else draft.probs[:keep])

    plant.setattr(SharedTokenDrafter, "_propose_by_logits", dropping)


def probabilities_of_all_tokens_reported(plant: pytest.MonkeyPatch) -> None:
    """The draft draws from the shared tokens, and reports what they had before the others were left out."""
    original, inner = ModelDrafter._over_target_vocab, TranslatedModel.own_logits
    share: list[float] = []

    def remembering(self: TranslatedModel, ids: Sequence[int], written: Sequence[int]) -> torch.Tensor:
        logits = inner(self, ids, written)
        share[:] = [float(logits.softmax(-1)[:, sorted(self._shared_draft_ids)].sum())]
        return logits

    plant.setattr(TranslatedModel, "own_logits", remembering)
    plant.setattr(ModelDrafter, "_over_target_vocab", lambda self, probs: original(self, probs * share[0]))


@pytest.mark.parametrize("bug", [a_token_dropped_after_it_was_drawn, probabilities_of_all_tokens_reported])
def test_a_planted_bug_changes_the_distribution(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    sampling = PROCESSORS["plain"]

    found = distribution_of("shared", PAIRS["partial overlap"], sampling, "token")

    assert abs(sum(found.values()) - 1) < 1e-12, "an outcome is missing: that is another fault"
    with pytest.raises(AssertionError):
        assert_same_distribution(found, target_distribution(table(3, 1), sampling))
