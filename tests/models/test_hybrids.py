"""Models with running states: drafts change neither their text nor their states, and broken rollbacks are caught."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine.draft_length.fixed import MAX_REPLAYED
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import every_outcome
from specgen.models import running_states
from specgen.models.batch_invariance import check_batch_invariance
from specgen.models.checkpoints import MAX_CHECKPOINTS
from specgen.models.running_states import RunningStates, state_sizes
from specgen.models.transformers_model import TransformersModel
from tests.fakes import ScriptedDrafter, always_wrong, assert_close, ids_of, rounds_of, run_events, sampler, tiny_model
from tests.hybrids import HYBRIDS, hybrid_model
from tests.profiles import share_of_profile

PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
MAIN = ["Lfm2", "Qwen3_5", "FalconH1"]
"""One architecture for each kind of rollback: cropped convolutions, a delta rule, both kinds of states in a layer."""
RECURRENT = [kind for kind in HYBRIDS if not kind.startswith("Lfm2")]
on_each = pytest.mark.parametrize("kind", HYBRIDS)


def make(kind: str, vocab_size: int = 96, seed: int = 0) -> TransformersModel:
    return TransformersModel(hybrid_model(kind, vocab_size, seed), vocab_size)


def fresh_logits(kind: str, ids: Sequence[int], num_last: int = 1) -> Tensor:
    """Returns the logits of transformers' code, without a cache."""
    with torch.inference_mode():
        logits: Tensor = hybrid_model(kind)(torch.tensor([list(ids)]), use_cache=False).logits[0, -num_last:].float()
    return logits


@cache
def reference(kind: str, num_tokens: int) -> tuple[int, ...]:
    """Returns transformers' own greedy text."""
    output = hybrid_model(kind).generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0
    )
    return tuple(output[0, len(PROMPT) :].tolist())


def drafter_of(name: str, kind: str, answer: Sequence[int]) -> Drafter:
    if name == "lookup":
        return LookupDrafter()
    if name in ("self", "model"):
        return ModelDrafter(make(kind, seed=0 if name == "self" else 1), 96, sampler())
    return NoDrafter() if name == "none" else always_wrong(answer, len(PROMPT), 96)


def check_greedy(kind: str, name: str, num_tokens: int = 20, num_draft_tokens: int = 3) -> None:
    answer = reference(kind, num_tokens)
    drafter = drafter_of(name, kind, answer)
    events = run_events(make(kind), drafter, PROMPT, max_new_tokens=num_tokens, num_draft_tokens=num_draft_tokens)
    assert tuple(ids_of(events)) == answer


@pytest.mark.parametrize("name", ["lookup", "always-wrong"])
@on_each
def test_greedy_text_equals_transformers_generate(kind: str, name: str) -> None:
    check_greedy(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "lookup", "model", "self", "always-wrong"])
@on_each
def test_two_hundred_tokens_equal_transformers_generate(kind: str, name: str) -> None:
    check_greedy(kind, name, 200, 4)


SAMPLED = SamplingSettings(temperature=1.0)
VOCAB = 3
LAW_PROMPT = [0, 1, 0]
NUM_LAW_TOKENS = 3


@cache
def target_distribution(kind: str) -> dict[tuple[int, ...], float]:
    """Computes the distribution of the next tokens by passes without a cache."""
    model, found = hybrid_model(kind, VOCAB), {(): 1.0}
    for _ in range(NUM_LAW_TOKENS):
        texts = list(found)
        with torch.inference_mode():
            logits = model(torch.tensor([[*LAW_PROMPT, *text] for text in texts]), use_cache=False).logits[:, -1]
        rows = logits.double().softmax(-1).tolist()
        found = {
            (*text, token): found[text] * probability
            for text, row in zip(texts, rows, strict=True)
            for token, probability in enumerate(row)
        }
    return found


def check_law(kind: str) -> None:
    target, found = make(kind, VOCAB), defaultdict[tuple[int, ...], float](float)
    accepted = set()
    drafter = ScriptedDrafter(lambda ids, limit: [(ids[-1] + step) % VOCAB for step in range(1, limit + 1)])
    options = {"max_new_tokens": NUM_LAW_TOKENS, "num_draft_tokens": 2, "sampling": SAMPLED}

    def run(randomness: object) -> list[object]:
        target.rewind(0)
        return run_events(target, drafter, LAW_PROMPT, randomness=randomness, **options)

    for weight, events in every_outcome(run):
        found[tuple(ids_of(events))] += weight
        accepted |= {(len(round_.draft_ids), round_.num_accepted) for round_ in rounds_of(events)}
    assert accepted >= {(2, 0), (2, 1), (2, 2)}, "a draft must be rejected at every position"
    expected = target_distribution(kind)
    assert found.keys() == expected.keys()
    assert max(abs(found[text] - expected[text]) for text in expected) < 1e-4


@pytest.mark.parametrize(
    "kind", [kind if kind in MAIN else pytest.param(kind, marks=pytest.mark.slow) for kind in HYBRIDS]
)
def test_drafts_rejected_at_every_position_keep_the_distribution(kind: str) -> None:
    check_law(kind)


def states_of(model: TransformersModel) -> list[Tensor]:
    """Copies all running states, those of convolutions up to the inputs that the next pass reads."""
    states = []
    for layer in model.states._layers:
        for index, state in layer.conv_states.items():
            if state is not None:
                states.append(state[..., 1 - layer.conv_kernel_size[index] :].clone())
        states += [state.clone() for state in layer.recurrent_states.values() if state is not None]
    return states


def rejected(kind: str, draft: list[int], num_accepted: int) -> TransformersModel:
    """Returns a model after a draft of which some tokens were accepted."""
    model = make(kind)
    model.feed(PROMPT[:-1])
    model.logits(PROMPT, len(draft) + 1, tail=torch.tensor(draft))
    model.rewind(len(PROMPT) + num_accepted)
    return model


def check_states(kind: str) -> None:
    for num_accepted in range(4):
        kept, rest = [5, 6, 7, 8][:num_accepted], 4 - num_accepted
        one = rejected(kind, kept + [20] * rest, num_accepted)
        other = rejected(kind, kept + [70] * rest, num_accepted)
        assert one.length == other.length
        for pair in zip(states_of(one), states_of(other), strict=True):
            # Experts compute the rows of their tokens together, so rejected tokens change the rounding of others.
            assert torch.equal(*pair) or (kind == "Lfm2Moe" and assert_close(*pair) is None), "a token left a trace"
        if one.is_recurrent:
            never = make(kind)
            never.feed(PROMPT[:-1])
            assert one.length == len(PROMPT) - 1
            assert all(torch.equal(*pair) for pair in zip(states_of(one), states_of(never), strict=True))
        ids = [*PROMPT, *kept, 33]
        assert_close(one.logits(ids, 1), fresh_logits(kind, ids))


@on_each
def test_a_rejected_draft_leaves_the_states_as_if_it_had_never_been_fed(kind: str) -> None:
    check_states(kind)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_rejected_draft_adds_no_pass(kind: str) -> None:
    answer = reference(kind, 20)
    model = make(kind)
    events = run_events(model, always_wrong(answer, len(PROMPT), 96), PROMPT, max_new_tokens=6, num_draft_tokens=2)

    assert model.num_forwards == 1 + len(rounds_of(events))
    assert [round_.num_replayed for round_ in rounds_of(events)] == [0, 1, 2, 3, 4, 5]


def test_convolutions_are_cropped_so_nothing_is_fed_again() -> None:
    answer = reference("Lfm2", 30)
    events = run_events(make("Lfm2"), always_wrong(answer, len(PROMPT), 96), PROMPT, max_new_tokens=6)

    assert {round_.num_replayed for round_ in rounds_of(events)} == {0}


def test_a_round_without_a_draft_ends_a_long_replay() -> None:
    other = drafter_of("model", "FalconH1", ())
    rounds = rounds_of(run_events(make("FalconH1"), other, PROMPT, max_new_tokens=30, num_draft_tokens=2))

    assert max(round_.num_replayed for round_ in rounds) >= MAX_REPLAYED
    assert all(bool(round_.draft_ids) == (round_.num_replayed < MAX_REPLAYED) for round_ in rounds[:-1])


@pytest.mark.parametrize("kind", MAIN)
@settings(max_examples=share_of_profile(1 / 10))
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 14)), min_size=1, max_size=5), st.integers(0, 99))
def test_logits_after_rewinds_equal_a_fresh_prefill(kind: str, steps: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, ids = make(kind), [1]
    for num_fed, num_removed in steps:
        drafted = torch.randint(0, 96, (num_fed,), generator=generator)
        model.logits(ids, num_fed + 1, tail=drafted)
        ids = [*ids, *drafted.tolist()]
        ids = ids[: max(1, len(ids) - num_removed)]
        model.rewind(min(model.length, len(ids) - 1))
        assert_close(model.logits(ids, 1), fresh_logits(kind, ids))
        model.rewind(min(model.length, len(ids) - 1))


@pytest.mark.parametrize("kind", MAIN)
def test_the_next_turn_of_a_chat_continues_from_the_last_prompt(kind: str) -> None:
    model, answer = make(kind), reference(kind, 20)
    run_events(model, always_wrong(answer, len(PROMPT), 96), PROMPT, max_new_tokens=12, num_draft_tokens=3)

    model.rewind(len(PROMPT) + 1)  # the reply is rendered differently in the next prompt

    assert model.length == len(PROMPT) - 1
    ids = [*PROMPT, 50, 51, 52]
    assert_close(model.logits(ids, 1), fresh_logits(kind, ids))


@pytest.mark.parametrize("kind", MAIN)
def test_a_long_prompt_is_fed_in_chunks_with_the_same_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cached_model", "transformers_model"):
        monkeypatch.setattr(f"specgen.models.{module}.PREFILL_CHUNK", 8)
    ids = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    model = make(kind)
    model.feed(ids[:-1])

    assert max(state.shape[-1] for layer in model.states._layers for state in layer.conv_states.values()) <= 8
    assert_close(model.logits(ids, 1), fresh_logits(kind, ids))


def test_copies_of_states_are_few_and_counted() -> None:
    model = make("Qwen3_5")
    for length in range(1, 12):
        model.feed(list(range(1, length + 1)))

    assert len(model.states.checkpoints._at_prompts) == MAX_CHECKPOINTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_each
def test_the_sizes_of_states_are_known_without_weights(kind: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(hybrid_model(kind)).to(dtype)
    cached = TransformersModel(model, 96)
    cached.feed(PROMPT)
    states = [
        state
        for layer in cached.states._layers
        for state in (*layer.conv_states.values(), *layer.recurrent_states.values())
        if state is not None
    ]

    sizes = state_sizes(copy.deepcopy(model), dtype.itemsize)

    assert sizes is not None
    assert sizes.num_bytes == sum(state.numel() * state.element_size() for state in states)
    assert sizes.is_recurrent == cached.is_recurrent == (kind in RECURRENT)
    assert sizes.num_attention_layers == (0 if kind == "Mamba2" else 1)


@pytest.mark.parametrize("kind", MAIN)
def test_the_self_test_measures_how_recurrent_rules_round(kind: str) -> None:
    model = make(kind)
    check = check_batch_invariance(model)
    single, together = make(kind), make(kind)
    step = 96 // 19
    ids = [step * (index + 1) for index in range(10)]
    logits = together.logits(ids, 10)
    alone = torch.stack([single.logits(ids[: end + 1], 1)[0] for end in range(6)])

    assert model.length == 0
    assert check.is_invariant
    assert (check.recurrent_difference is not None) == (kind in RECURRENT)
    if check.recurrent_difference:
        assert check.recurrent_difference <= 2 * float((alone - logits[:6]).abs().max()) < 1e-4


def test_a_target_without_recurrent_layers_has_no_such_difference() -> None:
    assert state_sizes(tiny_model("llama"), 4) is None
    assert check_batch_invariance(TransformersModel(tiny_model("llama"), 96)).recurrent_difference is None


# Planted bugs: each must be caught by a check that passes without it.


def not_restored(plant: pytest.MonkeyPatch) -> None:
    original = RunningStates.restore

    def forgetful(self: RunningStates, length: int) -> int:
        before = [{i: s.clone() for i, s in layer.recurrent_states.items()} for layer in self._layers]
        kept = original(self, length)
        for layer, states in zip(self._layers, before, strict=True):
            layer.recurrent_states = states
        return kept

    plant.setattr(RunningStates, "restore", forgetful)


def replay_one_short(plant: pytest.MonkeyPatch) -> None:
    original = TransformersModel._cut
    plant.setattr(TransformersModel, "_cut", lambda self, length: min(length, original(self, length) + 1))


def convolution_not_cropped(plant: pytest.MonkeyPatch) -> None:
    def attention_only(self: TransformersModel, num_tokens: int) -> None:
        for layer in self._cache.layers:
            layer.crop(0 if hasattr(layer, "conv_states") else -num_tokens)
        self._num_recorded = 0

    plant.setattr(TransformersModel, "_crop", attention_only)


def convolution_not_restored(plant: pytest.MonkeyPatch) -> None:
    original = RunningStates.restore

    def forgetful(self: RunningStates, length: int) -> int:
        before = [dict(layer.conv_states) for layer in self._layers]
        kept = original(self, length)
        for layer, states in zip(self._layers, before, strict=True):
            layer.conv_states = states
        return kept

    plant.setattr(RunningStates, "restore", forgetful)


def position_off_by_one_after_replay(plant: pytest.MonkeyPatch) -> None:
    original, cut = TransformersModel._positions, TransformersModel._cut
    shifted: set[int] = set()

    def noting(self: TransformersModel, length: int) -> int:
        kept = cut(self, length)
        if kept < length:
            shifted.add(id(self))
        return kept

    def off(self: TransformersModel, new: Tensor) -> Tensor:
        is_shifted = id(self) in shifted
        shifted.discard(id(self))
        return original(self, new) + int(is_shifted)

    plant.setattr(TransformersModel, "_cut", noting)
    plant.setattr(TransformersModel, "_positions", off)


def copied_by_reference(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(running_states, "_cloned", dict)


def check_replayed_greedy(kind: str) -> None:
    check_greedy(kind, "always-wrong")


Bug = Callable[[pytest.MonkeyPatch], None]
BUGS: list[tuple[Bug, Callable[[str], None], tuple[str, ...]]] = [
    (not_restored, check_states, ("Qwen3_5", "FalconH1", "Bamba")),
    (not_restored, check_replayed_greedy, ("Qwen3_5", "Mamba2")),
    (not_restored, check_law, ("Qwen3_5",)),
    (replay_one_short, check_states, ("Qwen3_5", "FalconH1")),
    (replay_one_short, check_replayed_greedy, ("Qwen3_5", "FalconH1")),
    (convolution_not_cropped, check_states, ("Lfm2",)),
    (convolution_not_cropped, check_law, ("Lfm2",)),
    (convolution_not_restored, check_states, ("Qwen3_5", "Bamba")),
    (position_off_by_one_after_replay, check_states, ("Qwen3_5", "FalconH1", "Bamba")),
    (position_off_by_one_after_replay, check_replayed_greedy, ("Qwen3_5", "FalconH1")),
    (copied_by_reference, check_states, ("Qwen3_5", "FalconH1")),
]


@pytest.mark.parametrize(("bug", "check", "kind"), [(bug, check, kind) for bug, check, kinds in BUGS for kind in kinds])
def test_planted_bugs_are_caught(
    bug: Bug, check: Callable[[str], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference(kind, 20)
    bug(monkeypatch)

    with pytest.raises((AssertionError, RuntimeError)):
        check(kind)
