"""Draft heads: their forward pass is that of the format, and the text is the target's, whatever they propose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from specgen.core.errors import DraftError, PairError
from specgen.core.events import Round
from specgen.core.progress import SILENT
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import ScriptedRandomness, every_outcome
from specgen.engine.randomness import PositionNoise
from specgen.engine.sampling import Sampler, token_distributions
from specgen.loading.draft_head import load_draft_head
from specgen.models import cached_model, draft_head
from specgen.models.draft_head import DraftHeadModel
from specgen.models.transformers_model import TransformersModel
from tests.decoders import decoder_model
from tests.draft_heads import SHAPES, SlowDraft, head_drafter, open_draft, resolved_head, tiny_draft, write_draft
from tests.engine.distributions import distributions_made_once
from tests.fakes import GREEDY, assert_close, ids_of, rounds_of, run_events, sampler, tiny_model
from tests.models.test_decoder import BUILDERS, build, built
from tests.profiles import share_of_profile, thorough_except

KINDS = ["layers", "features"]
PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
SUBSET = [0, 2, 3, 17, 40, 41, 60, 95]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafts")


@cache
def greedy_text(model: Any, num_tokens: int) -> list[int]:
    """Returns the greedy text of transformers itself."""
    output = model.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0
    )
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("ids", [None, SUBSET], ids=["all-ids", "subset"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.fast("llama-features-*", "llama-layers-*", "qwen3-*-subset")
def test_logits_equal_the_formats_definition(
    root: Path, name: str, kind: str, ids: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_model, "PREFILL_CHUNK", 3)
    monkeypatch.setattr(draft_head, "PREFILL_CHUNK", 4)
    model = built(name)
    folder = write_draft(root / f"{name}{kind}{ids is None}", model, kind=kind, num_layers=2, draft_ids=ids)
    target, slow = decoder_model(model, 96), SlowDraft(folder, model)
    draft = open_draft(folder, target)
    target.feed(PROMPT[:-1])

    for tail in ([], [5], [5, 7], [5, 7, 60]):
        logits = draft.logits(PROMPT, 1, torch.tensor(tail, dtype=torch.int64))
        assert logits.dtype == torch.float32
        assert_close(logits, slow.logits(PROMPT, tail))
    assert draft.vocab_size == (96 if ids is None else len(SUBSET))


class DraftMachine(RuleBasedStateMachine):
    """Runs rounds, single steps, new turns and rewinds in any order, and compares with a pass over the whole text."""

    kind = "features"
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        model = built("llama")
        self.target = decoder_model(model, 96)
        self.slow = SlowDraft(self.folder, model)
        self.draft = open_draft(self.folder, self.target)
        self.ids: list[int] = []

    @initialize(ids=st.lists(st.integers(0, 95), min_size=1, max_size=12))
    def begin(self, ids: list[int]) -> None:
        self.ids = list(ids)

    def rewind(self) -> None:
        """Rewinds both models as the loop does after a round."""
        for one in (self.target, self.draft):
            one.rewind(min(one.length, len(self.ids) - 1))

    @rule(tail=st.lists(st.integers(0, 95), max_size=5), data=st.data())
    def round(self, tail: list[int], data: st.DataObject) -> None:
        self.target.feed(self.ids[:-1])
        for length in range(len(tail) + 1):
            logits = self.draft.logits(self.ids, 1, torch.tensor(tail[:length], dtype=torch.int64))
            assert_close(logits, self.slow.logits(self.ids, tail[:length]))
        self.target.logits(self.ids, len(tail) + 1, torch.tensor(tail, dtype=torch.int64))
        self.ids += [*tail[: data.draw(st.integers(0, len(tail)))], data.draw(st.integers(0, 95))]
        self.rewind()

    @rule(token=st.integers(0, 95))
    def step_without_a_draft(self, token: int) -> None:
        self.target.logits(self.ids, 1)
        self.ids.append(token)
        self.rewind()

    @rule(ids=st.lists(st.integers(0, 95), min_size=1, max_size=8))
    def next_turn(self, ids: list[int]) -> None:
        self.ids += ids
        self.target.feed(self.ids[:-1])
        self.draft.feed(self.ids[:-1])

    @precondition(lambda self: len(self.ids) > 1)
    @rule(data=st.data())
    def shorten(self, data: st.DataObject) -> None:
        self.ids = self.ids[: data.draw(st.integers(1, len(self.ids)))]
        self.rewind()

    @rule()
    def empty(self) -> None:
        self.target.rewind(0)
        self.draft.rewind(0)


@pytest.mark.parametrize("kind", thorough_except(["features"], KINDS))
@pytest.mark.thorough
def test_any_order_of_rounds_and_rewinds_equals_a_pass_over_the_whole_text(root: Path, kind: str) -> None:
    class Machine(DraftMachine):
        pass

    Machine.kind = kind
    Machine.folder = write_draft(root / f"machine-{kind}", built("llama"), kind=kind)
    examples = share_of_profile(0.25)
    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=15))


def test_a_draft_added_late_starts_where_features_are_known(root: Path) -> None:
    model = built("llama")
    folder = write_draft(root / "late", model, kind="features")
    target, slow = decoder_model(model, 96), SlowDraft(folder, model)
    target.feed(PROMPT[:5])
    draft = open_draft(folder, target)
    target.feed(PROMPT[:-1])

    logits = draft.logits(PROMPT, 1, torch.tensor([7]))

    assert draft.start == 5
    assert_close(logits, slow.logits(PROMPT, [7], start=5))
    draft.rewind(5)
    assert (draft.length, draft.start) == (0, 0)
    assert_close(draft.logits(PROMPT, 1), slow.logits(PROMPT, start=5))


def test_a_draft_added_late_reads_the_whole_text_after_the_target_reads_it_again(root: Path) -> None:
    model = built("llama")
    folder = write_draft(root / "again", model, kind="features")
    target, slow = decoder_model(model, 96), SlowDraft(folder, model)
    target.feed(PROMPT)
    draft = open_draft(folder, target)
    target.rewind(0)
    target.feed(PROMPT[:-1])

    assert_close(draft.logits(PROMPT, 1), slow.logits(PROMPT))


def test_a_failure_empties_the_draft_and_it_still_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    folder = write_draft(root / "failing", model, kind="features")
    target, slow = decoder_model(model, 96), SlowDraft(folder, model)
    draft = open_draft(folder, target)
    target.feed(PROMPT[:-1])
    draft.logits(PROMPT, 1)
    head = draft._head
    with monkeypatch.context() as patch:
        patch.setattr(draft, "_norm", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draft.logits(PROMPT, 1, torch.tensor([7]))

    assert draft.length == 0
    assert draft._head is head
    assert_close(draft.logits(PROMPT, 1), slow.logits(PROMPT))


def test_a_draft_rewound_to_the_start_frees_its_memory(root: Path) -> None:
    model = built("llama")
    target = decoder_model(model, 96)
    drafter = head_drafter(write_draft(root / "rewound", model, kind="features"), target, GREEDY)
    run_events(target, drafter, PROMPT, max_new_tokens=6)
    slots = drafter.model._layers._slots  # type: ignore[attr-defined]
    assert slots._keys

    drafter.rewind(0)

    assert slots._keys == slots._values == []


def test_a_text_of_one_token_can_be_drafted_for(root: Path) -> None:
    model = built("llama")
    folder = write_draft(root / "one-token", model, kind="features")
    target, slow = decoder_model(model, 96), SlowDraft(folder, model)

    logits = open_draft(folder, target).logits([5], 1)

    assert_close(logits, slow.logits([5]))


@pytest.mark.parametrize("name", BUILDERS)
def test_target_features_are_the_models_last_hidden_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_model, "PREFILL_CHUNK", 3)
    model = built(name)
    target = decoder_model(model, 96)
    features = target.record_target_features()
    target.feed(PROMPT[:-1])
    target.logits(PROMPT, 3, torch.tensor([4, 5]))

    with torch.inference_mode():
        expected = model.model(torch.tensor([[*PROMPT, 4, 5]])).last_hidden_state[0]
    assert_close(features.rows(0, 10), expected)
    target.rewind(6)
    assert (features.first, features.end) == (0, 6)
    target.reset()
    assert (features.first, features.end) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recording_target_features_changes_no_logit(dtype: torch.dtype) -> None:
    model = build("llama", dtype)
    plain, recording = decoder_model(model, 96), decoder_model(model, 96)
    recording.record_target_features()

    for ids in (PROMPT, [*PROMPT, 4], [*PROMPT, 4, 9, 9]):
        num_last = len(ids) - plain.length
        assert torch.equal(plain.logits(ids, num_last), recording.logits(ids, num_last))


def test_no_features_are_recorded_for_a_draft_that_reads_none(root: Path) -> None:
    target = decoder_model(built("llama"), 96)
    open_draft(write_draft(root / "no-features", built("llama"), kind="layers"), target)
    target.feed(PROMPT)

    assert target.target_features is None


@pytest.mark.thorough
def test_memory_grows_with_the_text_not_with_the_number_of_rounds(root: Path) -> None:
    target = decoder_model(built("llama"), 96)
    drafter = head_drafter(write_draft(root / "memory", built("llama"), kind="features"), target, GREEDY)
    sizes = set()
    for _ in range(3):
        run_events(target, drafter, PROMPT, max_new_tokens=60, num_draft_tokens=4)
        target.rewind(4)
        drafter.rewind(4)
        assert target.target_features is not None
        num_bytes = drafter.model._layers._slots._keys[0].untyped_storage().nbytes()  # type: ignore[attr-defined]
        sizes.add((target.target_features._rows.untyped_storage().nbytes(), num_bytes))  # type: ignore[union-attr]

    assert len(sizes) == 1


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    ("kind", "num_draft_tokens"),
    [
        *thorough_except([("llama", 2), ("llama", 8)], (("llama", number) for number in (1, 2, 5, 8))),
        ("mistral", 8),
        *(pytest.param(kind, 8, marks=pytest.mark.thorough) for kind in ("qwen2", "qwen3")),
        *(pytest.param(kind, 2, marks=pytest.mark.thorough) for kind in ("mistral", "qwen2", "qwen3")),
    ],
)
@pytest.mark.fast("*oracle", "llama-2-head subset")
def test_greedy_text_is_the_targets_own(kind: str, name: str, num_draft_tokens: int) -> None:
    model = built(kind)
    target = decoder_model(model, 96)
    drafter = head_drafter(tiny_draft(name, model, kind), target, GREEDY)

    events = run_events(target, drafter, PROMPT, max_new_tokens=40, num_draft_tokens=num_draft_tokens)

    assert ids_of(events) == greedy_text(model, 40)
    if name.endswith("oracle"):
        assert all(r.num_accepted == len(r.draft_ids) for r in rounds_of(events))
        assert len(rounds_of(events)) == -(-40 // (num_draft_tokens + 1))


def test_a_draft_of_a_subset_proposes_only_its_tokens() -> None:
    model = built("llama")
    target = decoder_model(model, 96)
    drafter = head_drafter(tiny_draft("head subset", model, "llama"), target, SamplingSettings(temperature=2.0))

    events = run_events(target, drafter, PROMPT, max_new_tokens=60, sampling=SamplingSettings(temperature=2.0))

    drafted = {token for round_ in rounds_of(events) for token in round_.draft_ids}
    assert len(drafted) > 5
    assert drafted <= set(SHAPES["head subset"]["draft_ids"])


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.fast("*oracle")
def test_with_same_text_the_draft_does_not_change_the_sampled_text(name: str) -> None:
    sampling = SamplingSettings(temperature=0.9, top_k=40, repetition_penalty=1.1, seed=7, same_text=True)
    model = built("llama")
    target = decoder_model(model, 96)
    noise = PositionNoise(7, 96)
    drafter = head_drafter(tiny_draft(name, model, "llama"), target, sampling, noise=noise)
    options = {"sampling": sampling, "max_new_tokens": 30}

    drafted = run_events(target, drafter, PROMPT, noise=noise, **options)
    target.reset()
    baseline = run_events(target, NoDrafter(), PROMPT, noise=PositionNoise(7, 96), **options)

    assert ids_of(drafted) == ids_of(baseline)
    if name.endswith("oracle"):
        assert all(r.num_accepted == len(r.draft_ids) for r in rounds_of(drafted))


def test_a_draft_that_computes_nan_is_dropped_and_the_text_stays(root: Path) -> None:
    model = built("llama")
    target = decoder_model(model, 96)
    drafter = head_drafter(tiny_draft("head features", model, "llama"), target, GREEDY)
    drafter.model._head = lambda rows: torch.full((1, 96), torch.nan)  # type: ignore[attr-defined]

    assert ids_of(run_events(target, drafter, PROMPT, max_new_tokens=20)) == greedy_text(model, 20)
    with pytest.raises(DraftError):
        drafter.propose(PROMPT, 1, FixedLength())


def test_a_target_on_transformers_is_refused(root: Path) -> None:
    model = built("llama")
    draft = resolved_head(write_draft(root / "refused", model))

    with pytest.raises(PairError):
        load_draft_head(draft, 96, SILENT, TransformersModel(model, 96))


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "verification"), [("layers", "token"), ("features", "block")])
@pytest.mark.parametrize("ids", [None, (0, 2)], ids=["all-ids", "subset"])
def test_the_distribution_over_all_outcomes_is_the_targets(
    root: Path, kind: str, ids: tuple[int, ...] | None, verification: str
) -> None:
    sizes = {"vocab_size": 3, "hidden_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    model = tiny_model("llama", 3, **sizes)
    folder = write_draft(root / f"distribution-{kind}-{ids is None}-{verification}", model, kind=kind, draft_ids=ids)
    sampling = SamplingSettings(temperature=0.8)
    target = decoder_model(model, 3)
    draft = open_draft(folder, target)

    def run(randomness: ScriptedRandomness) -> tuple[int, ...]:
        target.reset()
        draft.reset()
        drafter = ModelDrafter(draft, 3, Sampler(sampling, randomness), columns=draft.columns)
        options = {"max_new_tokens": 3, "num_draft_tokens": 2, "verification": verification}
        return tuple(ids_of(run_events(target, drafter, [0, 1], sampling=sampling, randomness=randomness, **options)))

    distribution: dict[tuple[int, ...], float] = defaultdict(float)
    with distributions_made_once():
        for probability, text in every_outcome(run):
            distribution[text] += probability

    expected = target_distribution(model, sampling, [0, 1], 3)
    assert abs(sum(distribution.values()) - 1) < 1e-6
    # float32 logits of passes over one and over several tokens.
    assert max(abs(distribution.get(text, 0.0) - expected.get(text, 0.0)) for text in {*distribution, *expected}) < 1e-5


def target_distribution(
    model: Any, sampling: SamplingSettings, text: Sequence[int], num_tokens: int
) -> dict[Any, float]:
    """Computes the distribution from transformers' own logits, without a draft."""
    distribution: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(num_tokens):
        longer = {}
        for new, weight in distribution.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*text, *new]])).logits[0, -1:].float()
            probs = token_distributions(logits, sampling).probs
            assert probs is not None
            longer |= {(*new, token): weight * p for token, p in enumerate(probs[0].tolist())}
        distribution = longer
    return distribution


def test_after_each_round_both_caches_contain_the_text() -> None:
    model = built("llama")
    target = decoder_model(model, 96)
    drafter = head_drafter(tiny_draft("head features", model, "llama"), target, GREEDY)
    text = list(PROMPT)
    for event in decode(target, drafter, PROMPT, sampler(), DecodeOptions(DecodeSettings(24, 4))):
        if isinstance(event, Round):
            text += event.token_ids
            assert target.length == len(text) - 1
            assert isinstance(drafter.model, DraftHeadModel)
            if event.draft_ids:
                # Entries computed from its own outputs are gone: it is back at the start of the round.
                assert drafter.model.length == len(text) - len(event.token_ids)
