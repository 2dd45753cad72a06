"""Recorded passes: the same text as without them, wherever a replay is in the text, and one host read a round."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.draft_tree import DraftTree
from specgen.core.errors import NumericalError
from specgen.core.events import Notice, Round
from specgen.core.metrics import Counts
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.contract import GreedyDrafter, GreedyVerifier, RecordingModel
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.enumeration import ScriptedRandomness, every_outcome
from specgen.engine.sampling import Sampler
from specgen.models import cached_model
from specgen.models.batch_invariance import check_batch_invariance
from specgen.models.cuda import prepare_cuda, recorded, recorder_for
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.forward_pass import Norm, fused_norm
from specgen.models.static import admission, inputs, prefill
from specgen.models.static.admission import admission_failure
from specgen.models.static.inputs import MAX_ROWS, ROWS, DraftedTokens, capacity_for, padded_rows
from specgen.models.static.model import StaticModel
from specgen.models.static.recorder import PlainRecorder, Replays
from specgen.models.static.rounding import Rounding, difference, relative_distance
from specgen.models.static.slots import TensorSlots
from specgen.models.static.whole_pass import WholePass
from specgen.models.transformers_model import TransformersModel
from tests.decoders import decoder_model
from tests.draft_heads import SHAPES, open_draft, tiny_draft
from tests.engine.distributions import distributions_made_once
from tests.fakes import GREEDY, assert_close, ids_of, oracle, rounds_of, run_events, sampler, tiny_model
from tests.models.static.builders import UntilUnsure, distance_in, host_reads, static_model, traces_of, whole_model
from tests.models.static.recorder import TraceRecorder
from tests.models.test_decoder import DIFFERENT, FAMILIES, build
from tests.profiles import num_examples, thorough_except

PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
NUM_TOKENS = 28
SAMPLED = SamplingSettings(temperature=0.9, seed=5)


@cache
def model_of(kind: str, seed: int = 0) -> Any:
    return build(kind) if seed == 0 else tiny_model("llama", seed)


@cache
def shared_draft() -> StaticModel:
    """A draft whose passes are recorded in its first text, and replayed in those of other tests."""
    return static_model(model_of("llama", 1))


@cache
def greedy_text(kind: str) -> tuple[int, ...]:
    output = model_of(kind).generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None, pad_token_id=0
    )
    return tuple(output[0, len(PROMPT) :].tolist())


def text(target: StaticModel, drafter: Drafter, num_draft_tokens: int = 4, **options: Any) -> list[int]:
    target.rewind(0)
    drafter.rewind(0)
    events = run_events(
        target, drafter, PROMPT, max_new_tokens=NUM_TOKENS, num_draft_tokens=num_draft_tokens, **options
    )
    assert not any(isinstance(event, Notice) for event in events)
    return ids_of(events)


# Further kinds of what these have: a window, soft caps, layers of two kinds, tied weights, partial rotation, scales.
NEAR_KINDS = ("llama-bias", "linear-rope", "mistral", "qwen2", "phi3", "olmo2", "llama3-rope")


@pytest.mark.parametrize("kind", thorough_except(DIFFERENT, FAMILIES))
@pytest.mark.fast("phi3-window")
def test_greedy_text_of_every_family_equals_transformers(kind: str) -> None:
    target, draft = static_model(model_of(kind)), shared_draft()

    assert tuple(text(target, ModelDrafter(draft, 96, sampler()))) == greedy_text(kind)
    assert tuple(text(target, oracle(greedy_text(kind), len(PROMPT)))) == greedy_text(kind)
    assert len(target.replays.recorded_keys) >= 2


def test_a_draft_may_be_longer_than_a_recorded_pass() -> None:
    target, draft = static_model(model_of("llama")), static_model(model_of("llama"))

    assert tuple(text(target, ModelDrafter(draft, 96, sampler()), 39)) == greedy_text("llama")
    assert ("step", 1, 512) in draft.replays.recorded_keys


@pytest.mark.parametrize("kind", thorough_except(["gemma2"], ["llama", "gemma2", "phi3-window"]))
def test_text_past_a_bucket_equals_that_without_recording(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 16)
    static, plain = static_model(model_of(kind)), decoder_model(model_of(kind), 96)
    drafter = ModelDrafter(static_model(model_of("llama", 1)), 96, sampler())

    assert text(static, drafter) == text(plain, NoDrafter())
    assert static.capacity >= 64
    assert {bucket for _, _, bucket in static.replays.recorded_keys} >= {32, 64}


@pytest.mark.parametrize("make", [static_model, whole_model])
@pytest.mark.fast("static_model")
def test_one_seed_gives_one_text_with_any_draft(make: Callable[[Any], StaticModel]) -> None:
    sampling = SamplingSettings(temperature=0.8, seed=7, same_text=True)

    def run(drafts: bool) -> list[int]:
        own = Sampler.seeded(sampling, torch.device("cpu"), 96)
        drafter = ModelDrafter(make(model_of("llama", 1)), 96, own) if drafts else NoDrafter()
        options = DecodeOptions(DecodeSettings(30, 4))
        return ids_of(list(decode(make(model_of("llama")), drafter, PROMPT, own, options)))

    assert run(True) == run(False)


# replays


def filled(make: Callable[[Any], StaticModel]) -> StaticModel:
    """A model whose passes of every size are recorded."""
    model = make(model_of("llama"))
    for rows in ROWS:
        for _ in range(2):
            model.rewind(0)
            model.feed(PROMPT)
            model.logits([*PROMPT, *range(rows)], rows)
    return model


@pytest.mark.parametrize("make", [static_model, whole_model])
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=num_examples(15))
@pytest.mark.fast("static_model")
def test_poison_after_the_text_changes_no_logits(
    make: Callable[[Any], StaticModel], steps: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, plain = shared_filled(make), decoder_model(model_of("llama"), 96)
    model.rewind(0)
    ids = [1]
    for num_fed, num_removed in steps:
        ids = [*ids, *torch.randint(0, 96, (num_fed,), generator=generator).tolist()]
        poison(model)
        assert_close(model.logits(ids, 1), plain.logits(ids, 1))
        ids = ids[: max(1, len(ids) - num_removed)]
        for each in (model, plain):
            each.rewind(len(ids) - 1)


shared_filled = cache(filled)


@torch.inference_mode()
def poison(model: StaticModel) -> None:
    """Fills what no pass may read: all outputs, and keys and values after the text."""
    model._logits.fill_(float("nan"))
    model._verdict.fill_(-1)
    if isinstance(model.static_pass, WholePass):
        layers = [] if model.static_pass._cache is None else model.static_pass._cache.layers
        caches = [part[0] for layer in layers if layer.is_initialized for part in (layer.keys, layer.values)]
    else:
        caches = [*model.static_pass._last.slots._keys, *model.static_pass._last.slots._values]
    for cached in caches:
        cached[:, model.length :] = 1e4  # not NaN: a weight of 0 times NaN is NaN


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.fast("False")
def test_what_an_earlier_draft_left_is_not_read(head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, confidences and the flag of the last draft are overwritten with what would show before each draft."""

    def drafts(policy: LengthPolicy) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        target = static_model(model_of("llama"))
        draft: Any = static_model(model_of("llama", 1))
        if head:
            draft = open_draft(tiny_draft("head subset", model_of("llama"), "static-llama"), target)
        drafter = ModelDrafter(draft, 96, sampler(), columns=draft.columns if head else None)
        drafter.drafts_ahead = True
        found = run_events(target, drafter, PROMPT, max_new_tokens=20, num_draft_tokens=4, draft_length=policy)
        assert not any(isinstance(event, Notice) for event in found)
        return [(round_.draft_ids, round_.token_ids) for round_ in rounds_of(found)]

    expected = [drafts(policy) for policy in (FixedLength(), UntilUnsure())]
    original = DraftedTokens.restart

    def poisoned(self: DraftedTokens) -> None:
        self.ids.fill_(-7)
        self.confidences.fill_(float("nan"))
        self.is_finite.fill_(False)
        original(self)

    monkeypatch.setattr(DraftedTokens, "restart", poisoned)

    assert [drafts(policy) for policy in (FixedLength(), UntilUnsure())] == expected
    assert len({len(draft_ids) for draft_ids, _ in expected[1]}) > 1


@pytest.mark.parametrize("make", [static_model, whole_model])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "tied", "mistral-window", "qwen2-window"])
def test_a_recording_does_not_depend_on_the_position(make: Callable[[Any], StaticModel], kind: str) -> None:
    model = make(model_of(kind))
    model.logits(list(range(30)), 1)
    for length in (25, 9):
        model.replays.clear()
        for _ in range(2):
            model.rewind(length)
            model.logits(list(range(length + 3)), 3)

    first, second = (trace.signature() for trace in traces_of(model)[-2:])
    assert first == second
    assert len(first) > 50


def recorded_at(model: Any, first: int, work: Callable[[Any, list[int]], object]) -> dict[Any, Any]:
    """What `work` records by key, on a text of `first` tokens and one more."""
    model.replays.clear()
    for _ in range(2):
        model.rewind(0)
        model.feed(list(range(first)))
        work(model, list(range(first + 1)))
    return {key: replay.__self__ for key, replay in model.replays._recorded.items() if key[0] not in ("feed", "logits")}


def verify_three(model: StaticModel, ids: list[int]) -> None:
    read = model.verify_greedy(ids, torch.tensor([5, 6, 7]))
    assert read is not None
    read()


def draft_three(model: Any, ids: list[int]) -> None:
    for index in range(3):
        model.draft_token(ids, index)


@pytest.mark.parametrize(
    ("kind", "name"),
    thorough_except(
        [("qwen2-window", "verify"), ("qwen2-window", "draft"), ("llama", "head")],
        [*itertools.product(["llama", "qwen2-window", "gemma3", "whole"], ["verify", "draft"]), ("llama", "head")],
    ),
)
def test_passes_of_a_round_do_not_depend_on_the_position(kind: str, name: str) -> None:
    model, work = round_pass(kind, name)
    first, second = (recorded_at(model, length, work) for length in (25, 9))

    # Numbers of tensors that were there before are compared as they are now, because passes write to them.
    assert first.keys() == second.keys()
    assert len(first) == (1 if name == "verify" else 2)
    assert all(trace.signature() == second[key].signature() for key, trace in first.items())
    assert sum(len(trace.signature()) for trace in first.values()) > 50


def round_pass(kind: str, name: str) -> tuple[Any, Callable[[Any, list[int]], None]]:
    """A model, and what it does in a round."""
    target = whole_model(model_of("qwen2-window")) if kind == "whole" else static_model(model_of(kind))
    target.reserve(100)
    if name != "head":
        return target, verify_three if name == "verify" else draft_three
    target.record_target_features()
    target.feed(list(range(40)))
    head: Any = open_draft(tiny_draft("head features", model_of("llama"), "static-llama"), target)
    head.reserve(100)
    return head, draft_three


def test_a_host_read_while_recording_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = StaticModel._write_logits

    def reading(self: StaticModel, rows: int, bucket: int) -> None:
        original(self, rows, bucket)
        assert self._logits[0, 0].item() == self._logits[0, 0].item()

    monkeypatch.setattr(StaticModel, "_write_logits", reading)
    model = filled(static_model)

    assert "reads the device" in str(model.take_failure())


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda: torch.zeros(2).tolist(), "reads the device"),
        (lambda: torch.zeros(2).numpy(), "reads the device"),
        (lambda: torch.zeros(2)[torch.zeros(2) > 1], "reads the device"),
        (lambda: torch.zeros(2).unique(), "reads the device"),
        (lambda: torch.tensor([1, 2]), "host data"),
        (lambda: torch.zeros(2).to("meta"), "between devices"),
        (lambda: torch.empty(2, device="meta").copy_(torch.zeros(2)), "between devices"),
    ],
)
def test_a_read_or_a_transfer_while_recording_is_seen(work: Callable[[], Any], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        TraceRecorder().record(work)


def test_a_failed_recording_is_reported_once_and_costs_no_text() -> None:
    class Failing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("no graphs today\nsecond line")

    target = StaticModel(static_model(model_of("llama")).static_pass, 96, Failing())
    events = run_events(target, NoDrafter(), PROMPT, max_new_tokens=NUM_TOKENS)

    assert tuple(ids_of(events)) == greedy_text("llama")
    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["recording_failed"]
    assert "no graphs today" in notices[0].message


def test_growing_forgets_the_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 32)
    model = static_model(model_of("llama"))
    for _ in range(2):
        model.rewind(0)
        model.logits([1, 2, 3], 1)
    assert model.replays.recorded_keys == {("logits", 3, 32)}

    model.reserve(200)

    assert (model.capacity, model.replays.recorded_keys) == (256, frozenset())


@given(st.integers(1, 40))
def test_passes_are_padded_to_the_next_recorded_size(num_rows: int) -> None:
    padded = padded_rows(num_rows)

    assert padded >= num_rows
    assert padded == num_rows if num_rows > MAX_ROWS else padded in ROWS
    assert capacity_for(padded) >= padded


# host reads


@pytest.mark.parametrize(("policy", "most"), [("fixed", 1), ("auto", 2 + 4)])
def test_host_reads_of_a_greedy_round(policy: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = static_model(model_of("llama")), static_model(model_of("llama"))
    drafter = ModelDrafter(draft, 96, sampler())
    length = (
        FixedLength()
        if policy == "fixed"
        else CostAwareLength(CostTable(dict.fromkeys(range(1, 9), 1.0)), DraftCost(0.01))
    )
    options = DecodeOptions(DecodeSettings(NUM_TOKENS, 4), draft_length=length)
    events = decode(target, drafter, PROMPT, sampler(), options)
    counts: list[tuple[int, int]] = []
    with host_reads(monkeypatch) as reads:
        for event in events:
            if isinstance(event, Round):
                counts.append((len(event.draft_ids) + event.num_cut, len(reads)))
            reads.clear()

    assert max(drafted for drafted, _ in counts) == 4
    assert all(1 <= found <= (most if policy == "fixed" else 2 + drafted) for drafted, found in counts)


def test_static_models_have_what_the_loop_asks_for() -> None:
    model = static_model(model_of("llama"))

    assert isinstance(model, RecordingModel)
    assert isinstance(model, GreedyVerifier)
    assert isinstance(model, GreedyDrafter)


@pytest.mark.parametrize("num_drafted", [0, 1, 4, 7, 16])
@given(st.data())
@settings(max_examples=num_examples(10))
def test_the_verdict_of_the_device_is_that_of_the_logits(num_drafted: int, data: st.DataObject) -> None:
    static, plain = shared_pair()
    num_right = data.draw(st.integers(0, num_drafted))
    draft = list(greedy_text("llama")[:num_right]) + data.draw(
        st.lists(st.integers(0, 95), min_size=num_drafted - num_right, max_size=num_drafted - num_right)
    )
    for model in (static, plain):
        model.rewind(0)
        model.feed(PROMPT[:-1])

    read = static.verify_greedy(PROMPT, torch.tensor(draft, dtype=torch.int64))
    assert read is not None
    found = read()

    top = plain.logits(PROMPT, num_drafted + 1, tail=torch.tensor(draft, dtype=torch.int64)).argmax(-1).tolist()
    accepted = next((i for i, token in enumerate(draft) if token != top[i]), num_drafted)
    assert found == [accepted, top[accepted], 1, *draft]


@cache
def shared_pair() -> tuple[StaticModel, Any]:
    return static_model(model_of("llama")), decoder_model(model_of("llama"), 96)


def test_a_verdict_over_too_much_is_left_to_the_logits() -> None:
    model = static_model(model_of("llama"))

    assert model.verify_greedy(PROMPT, torch.tensor([1])) is None  # the prompt is not in the cache
    model.feed(PROMPT[:-1])
    assert model.verify_greedy(PROMPT, torch.zeros(MAX_ROWS, dtype=torch.int64)) is None
    assert model.length == len(PROMPT) - 1


def test_logits_that_are_not_finite_end_the_text() -> None:
    model = static_model(build("llama"))
    model.module.head.weight.data[5] = float("nan")

    with pytest.raises(NumericalError):
        text(model, NoDrafter())


def test_a_draft_that_is_not_finite_is_dropped() -> None:
    draft = static_model(build("llama"))
    draft.module.head.weight.data[5] = float("nan")
    policy = CostAwareLength(CostTable({1: 1.0, 2: 1.0}), DraftCost(0.01))
    events = run_events(
        static_model(model_of("llama")),
        ModelDrafter(draft, 96, sampler()),
        PROMPT,
        max_new_tokens=NUM_TOKENS,
        draft_length=policy,
    )

    assert tuple(ids_of(events)) == greedy_text("llama")
    assert [event.code for event in events if isinstance(event, Notice)] == ["draft_dropped"]


# what is learned


def test_warm_up_rounds_are_marked_and_not_learned() -> None:
    policy = CostAwareLength(CostTable(), DraftCost())
    events = run_events(static_model(model_of("llama")), NoDrafter(), PROMPT, max_new_tokens=6, draft_length=policy)

    assert [round_.is_warmup for round_ in rounds_of(events)] == [True, True, False, False, False, False]
    assert policy.costs.num_passes == 4


def test_padded_rows_share_a_cost() -> None:
    costs = CostTable(padded=padded_rows)
    costs.observe(7, 2.0)

    assert costs.known == {8: 2.0}
    assert costs.is_supported(7)
    assert costs.is_supported(8)
    assert costs.seconds(7) == costs.seconds(8)


def test_work_is_plain_then_recorded_then_replayed() -> None:
    done: list[str] = []

    class Spy:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            done.append("recorded")
            return lambda: done.append("replayed")

    replays = Replays(Spy())
    for _ in range(3):
        replays.run("key", lambda: done.append("plain"))

    assert done == ["plain", "recorded", "replayed", "replayed"]
    assert replays.num_warmups == 2


# draft heads


@pytest.mark.parametrize("name", thorough_except(["head subset"], SHAPES))
@pytest.mark.thorough
def test_a_draft_head_on_recorded_passes_drafts_what_it_drafts_without(name: str) -> None:
    model = model_of("llama")
    folder = tiny_draft(name, model, "static-llama")
    plain_target, target = decoder_model(model, 96), static_model(model)

    def events(run_target: Any, sampling: SamplingSettings = GREEDY) -> list[Round]:
        head = open_draft(folder, run_target)
        own = Sampler.seeded(sampling, torch.device("cpu"), 96)
        drafter = ModelDrafter(head, 96, own, columns=head.columns)
        found = list(decode(run_target, drafter, PROMPT, own, DecodeOptions(DecodeSettings(NUM_TOKENS, 4))))
        assert not any(isinstance(event, Notice) for event in found)
        return rounds_of(found)

    plain, static = events(plain_target), events(target)

    assert [round_.draft_ids for round_ in static] == [round_.draft_ids for round_ in plain]
    assert [token for round_ in static for token in round_.token_ids] == list(greedy_text("llama"))
    target.rewind(0)
    plain_target.rewind(0)
    assert [r.token_ids for r in events(target, SAMPLED)] == [r.token_ids for r in events(plain_target, SAMPLED)]


# the distribution


PROCESSED = {
    "temperature": SamplingSettings(temperature=2.0),
    "all": SamplingSettings(temperature=1.5, top_k=2, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("processed", "make", "drafts", "rule"),
    [
        # Which processor it is does not matter to a recorded pass: `test_enumeration` tests each.
        *((name, static_model, "model", "block") for name in PROCESSED),
        *(("all", static_model, drafts, rule) for drafts, rule in (("model", "token"), ("head", "block"))),
        ("all", whole_model, "whole", "block"),
        ("temperature", static_model, "head", "token"),
        ("all", static_model, "tree", "block"),
    ],
)
def test_sampling_keeps_the_targets_distribution(
    processed: str, make: Callable[..., StaticModel], drafts: str, rule: Any
) -> None:
    """Every outcome of two texts of three tokens, with and without drafts: all randomness is enumerated."""
    target = make(tiny_model("llama", 0, vocab_size=3), 3)
    draft: Any = (whole_model if drafts == "whole" else static_model)(tiny_model("llama", 1, vocab_size=3), 3)
    if drafts == "head":
        draft = open_draft(tiny_draft("head features", tiny_model("llama", 0, vocab_size=3), "three-tokens"), target)
    columns = draft.columns if drafts == "head" else None

    branching: list[DraftTree] = []

    def distribution(is_drafting: bool) -> dict[tuple[int, ...], float]:
        def run(randomness: ScriptedRandomness) -> tuple[int, ...]:
            target.rewind(0)
            draft.rewind(0)
            own = Sampler(PROCESSED[processed], randomness)
            kind, policy = (TreeDrafter, TreeLength(3)) if drafts == "tree" else (ModelDrafter, None)
            drafter = kind(draft, 3, own, columns=columns) if is_drafting else NoDrafter()
            options = DecodeOptions(DecodeSettings(3, 2, verification=rule), policy if is_drafting else None)
            events = list(decode(target, drafter, [1, 2], own, options))
            assert not any(isinstance(event, Notice) for event in events)
            branching.extend(round_.tree for round_ in rounds_of(events) if round_.tree is not None)
            return tuple(ids_of(events))

        found: dict[tuple[int, ...], float] = {}
        with distributions_made_once():
            for probability, tokens in every_outcome(run):
                found[tokens] = found.get(tokens, 0.0) + probability
        return found

    expected, found = distribution(False), distribution(True)

    assert abs(sum(found.values()) - 1) < 1e-6
    assert len(expected) > 1
    assert found.keys() == expected.keys()
    assert all(abs(found[tokens] - probability) < 1e-5 for tokens, probability in expected.items())
    assert (drafts == "tree") == any(tree.num_leaves > 1 for tree in branching)


# admission


def test_recorded_passes_are_admitted_if_they_compute_the_same() -> None:
    for model in (decoder_model(model_of("gemma3"), 96), TransformersModel(model_of("qwen2"), 96)):
        found = recorded(model, TraceRecorder())
        assert found.reason is None
        assert isinstance(found.model, StaticModel)
        assert found.model.length == 0


def test_a_cpu_records_nothing() -> None:
    assert recorder_for(torch.device("cpu")) is None


def test_passes_that_differ_are_not_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder_model(model_of("llama"), 96)
    original = StaticModel._write_logits

    def rolled(self: StaticModel, rows: int, bucket: int) -> None:
        original(self, rows, bucket)
        self._logits[:rows] = self._logits[:rows].roll(1, 0)

    monkeypatch.setattr(StaticModel, "_write_logits", rolled)
    found = recorded(model, TraceRecorder())

    assert found.model is model
    assert 1 < (distance_in(found.reason) or 0) < 2


def swapped(num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose likeliest tokens change places, so many steps of bfloat16 apart."""
    own = torch.full((1, 960), 15.5 - num_steps / 16)  # from 8 to 16, neighbours in bfloat16 are 1/16 apart
    other = own.clone()
    own[0, 3] = other[0, 7] = 15.5
    return other, own


@pytest.mark.parametrize(("num_steps", "is_near_tie"), [(41, False), (5, False), (4, True)])
def test_another_token_is_admitted_at_a_near_tie_only(num_steps: int, is_near_tie: bool) -> None:
    """The distance of all logits hides it."""
    other, own = swapped(num_steps)
    rounding = Rounding(torch.bfloat16, 2)

    assert relative_distance(other, own) < rounding.tolerance if num_steps < 41 else True
    found = difference(other, own, Rounding(torch.bfloat16, 32))
    assert (found is None) == is_near_tie
    assert is_near_tie or f"{num_steps / 16:.1e}" in str(found)


@pytest.mark.parametrize(("num_steps", "is_admitted"), [(5, False), (4, True)])
def test_a_model_that_chooses_another_token_is_not_admitted(
    num_steps: int, is_admitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, own = swapped(num_steps)
    model = decoder_model(build("llama").to(torch.bfloat16), 96)

    def verified(_: StaticModel, text: list[int], draft: list[int]) -> tuple[torch.Tensor, list[int]]:
        kept = list(itertools.takewhile(lambda token: token == 7, draft))
        return other.expand(len(draft) + 1, -1), [len(kept), 7, 1, *draft]

    monkeypatch.setattr(admission, "_verified", verified)
    monkeypatch.setattr(model, "logits", lambda ids, num_last: own.expand(num_last, -1))
    # In so small a model, the rounding of trees by some CPUs (AMX) is above the limit.
    monkeypatch.setattr(admission, "_tree_failure", lambda *_: None)

    found = recorded(model, TraceRecorder())

    assert isinstance(found.model, StaticModel) == is_admitted
    assert is_admitted or f"{num_steps / 16:.1e}" in str(found.reason)


def test_what_rounding_explains_follows_from_the_types_epsilon_and_the_depth() -> None:
    # Two plain passes of 28 layers with random weights on an H200, and a toy of two layers against its plain passes.
    assert 2 * 4.4e-2 < Rounding(torch.bfloat16, 28).tolerance < 0.2
    assert 2 * 1.1e-2 < Rounding(torch.bfloat16, 2).tolerance < 0.05
    assert Rounding(torch.float32, 2).tolerance == pytest.approx(1e-5, rel=0.2)
    assert Rounding(torch.bfloat16, 32).tolerance == 4 * Rounding(torch.bfloat16, 2).tolerance
    assert Rounding(torch.float16, 2).tolerance == Rounding(torch.bfloat16, 2).tolerance / 8
    assert Rounding(torch.bfloat16, 2, is_packed=True).tolerance == 2 * Rounding(torch.bfloat16, 2).tolerance


def test_passes_that_fail_are_not_admitted() -> None:
    static = static_model(model_of("llama"))
    static._inputs.offsets = torch.arange(3)  # too few for a pass over five rows

    reason = admission_failure(static, decoder_model(model_of("llama"), 96))
    assert reason
    assert distance_in(reason) is None, "nothing was compared"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_float32", [False, True])
def test_the_fused_norm_rounds_at_most_once_more(dtype: torch.dtype, in_float32: bool) -> None:
    spec = DecoderSpec(64, 64, 4, 4, 16, 96, (), norm_offset=1.0, scales_norm_in_float32=in_float32)
    generator = torch.Generator().manual_seed(0)
    norm = Norm(torch.randn(64, generator=generator).to(dtype), spec)
    hidden = torch.randn(5, 64, generator=generator).to(dtype)

    found, expected = fused_norm(spec, norm.weight, hidden), norm(hidden)

    assert found.dtype == expected.dtype == dtype
    assert float((found - expected).abs().max()) <= 2 * torch.finfo(dtype).eps * float(expected.abs().max())


def test_plain_recording_repeats_the_work() -> None:
    done: list[int] = []
    PlainRecorder().record(lambda: done.append(1))()

    assert done == [1]


def test_lookup_and_a_static_target_agree_with_transformers() -> None:
    assert tuple(text(static_model(model_of("llama")), LookupDrafter())) == greedy_text("llama")


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")
def test_cuda_is_prepared_without_what_is_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", called.append)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    reductions = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("bf16", "fp16")]
    switches = [(cudnn, "allow_tf32"), *((matmul, name) for name in ("allow_tf32", *reductions))]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        prepare_cuda()

        assert called == [False]
        assert [getattr(module, name) for module, name in switches] == [False] * 4
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


@pytest.mark.parametrize(
    ("make", "kind", "num_passes"), [(static_model, "llama", 2), (static_model, "gemma2", 5), (whole_model, "llama", 5)]
)
def test_a_prompt_is_read_in_few_passes_where_attention_stores_no_scores(
    make: Callable[[Any], StaticModel], kind: str, num_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_model, "PREFILL_CHUNK", 8)
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 32)
    prompt = [(7 * index) % 96 for index in range(36)]
    model, plain = make(model_of(kind)), decoder_model(model_of(kind), 96)

    model.feed(prompt)

    assert model.num_forwards == num_passes
    assert_close(model.logits([*prompt, 5], 1), plain.logits([*prompt, 5], 1))


def test_no_recording_is_lost_in_a_text_whose_length_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 16)
    model = static_model(model_of("llama"))
    model.reserve(len(PROMPT) + NUM_TOKENS)
    capacity = model.capacity

    text(model, NoDrafter())

    assert model.capacity == capacity == 64


# what must not spoil later passes


@torch.inference_mode()
def fill(model: StaticModel, first: int, last: int, value: float) -> None:
    for cached in (*model.static_pass._last.slots._keys, *model.static_pass._last.slots._values):
        cached[:, first:last] = value


@pytest.mark.parametrize("greedy", [True, False])
def test_a_text_after_one_with_nan_is_sound(greedy: bool) -> None:
    model = static_model(build("llama"))
    settings = GREEDY if greedy else SAMPLED
    model.feed(PROMPT)
    fill(model, 2, 4, float("nan"))
    with pytest.raises(NumericalError):
        list(decode(model, NoDrafter(), [*PROMPT, 5], sampler(settings), DecodeOptions(DecodeSettings(4, 0))))

    assert tuple(text(model, NoDrafter())) == greedy_text("llama")


@pytest.mark.parametrize("head", [False, True])
def test_a_fixed_length_draft_that_is_not_finite_is_dropped(head: bool) -> None:
    target = static_model(model_of("llama"))
    draft: Any = static_model(build("llama"))
    if head:
        draft = open_draft(tiny_draft("head layers", model_of("llama"), "static-llama"), target)
        draft._norm.weight.data[3] = float("nan")
    else:
        draft.module.head.weight.data[5] = float("nan")
    events = run_events(target, ModelDrafter(draft, 96, sampler()), PROMPT, max_new_tokens=NUM_TOKENS)

    assert tuple(ids_of(events)) == greedy_text("llama")
    assert [event.code for event in events if isinstance(event, Notice)] == ["draft_dropped"]


def test_growing_that_fails_leaves_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(static_model)
    real = TensorSlots.grow

    def failing(self: TensorSlots, capacity: int, num_kept: int) -> None:
        real(self, capacity, num_kept)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TensorSlots, "grow", failing)
        with pytest.raises(torch.OutOfMemoryError):
            model.reserve(2000)

    assert (model.length, model.capacity, model.replays.recorded_keys) == (0, 0, frozenset())
    assert tuple(text(model, NoDrafter())) == greedy_text("llama")


def test_a_failure_of_the_drafts_recording_is_reported() -> None:
    class Failing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("no graphs today")

    draft = StaticModel(static_model(model_of("llama", 1)).static_pass, 96, Failing())
    target = static_model(model_of("llama"))
    events = run_events(target, ModelDrafter(draft, 96, sampler()), PROMPT, max_new_tokens=NUM_TOKENS)

    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["recording_failed"]
    assert "the draft's passes" in notices[0].message
    assert tuple(ids_of(events)) == greedy_text("llama")


@pytest.mark.parametrize("num_last", [18, 40, 65])
def test_a_long_draft_is_verified_by_recorded_passes(num_last: int) -> None:
    static, plain = static_model(model_of("llama")), decoder_model(model_of("llama"), 96)
    ids = torch.randint(0, 96, (9 + num_last,), generator=torch.Generator().manual_seed(num_last)).tolist()
    for _ in range(2):
        static.rewind(0)
        static.feed(ids[:9])
        found = static.logits(ids, num_last)

    assert_close(found, plain.logits(ids, num_last))
    assert ("logits", MAX_ROWS, 512) in static.replays.recorded_keys


def test_admission_of_passes_without_memory_keeps_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: TensorSlots, capacity: int, num_kept: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TensorSlots, "grow", failing)
    model = decoder_model(model_of("llama"), 96)
    found = recorded(model, TraceRecorder())

    assert found.model is model
    assert ["memory" in str(found.reason), "CUDA" in str(found.reason)] == [True, False]


def test_warm_up_is_not_timed_as_plain_decoding() -> None:
    counts = Counts()
    for seconds, is_warmup in ((30.0, True), (110.0, True), (6.0, False)):
        counts.observe(Round(0, (), 0, 5, 0, 0.0, seconds, 0.0, is_warmup=is_warmup))

    assert (counts.num_plain_rounds, counts.num_timed_plain_rounds, counts.plain_seconds) == (3, 1, 6.0)


def test_costs_of_an_earlier_run_are_read_by_padded_rows() -> None:
    costs = CostTable({7: 1.5, 8: 1.4, 9: 2.0}, padded_rows)

    assert costs.known == {8: 1.4, 12: 2.0}
    assert costs.is_supported(9)


def test_the_check_of_batch_invariance_keeps_the_recordings() -> None:
    model = filled(static_model)
    keys = model.replays.recorded_keys

    assert check_batch_invariance(model).max_difference < 1e-4
    assert model.replays.recorded_keys >= keys
