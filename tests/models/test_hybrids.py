"""Models with running states: drafts change neither their text nor their states, also in the next turn."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.engine.draft_length.fixed import MAX_REPLAYED
from specgen.models.batch_invariance import check_batch_invariance
from specgen.models.checkpoints import MAX_CHECKPOINTS, MAX_COPIES, Checkpoints
from specgen.models.running_states import state_sizes
from specgen.models.transformers_model import TransformersModel
from tests.fakes import always_wrong, assert_close, rounds_of, run_events, tiny_model
from tests.hybrids import HYBRIDS, hybrid_model
from tests.models.hybrid_checks import (
    MAIN,
    PROMPT,
    RECURRENT,
    check_greedy,
    check_law,
    check_states,
    drafter_of,
    fresh_logits,
    make,
    reference,
)
from tests.profiles import share_of_profile, thorough_except

on_each = pytest.mark.parametrize("kind", HYBRIDS)


@pytest.mark.parametrize("name", thorough_except(["always-wrong"], ["lookup", "always-wrong"]))
@on_each
@pytest.mark.fast("Lfm2-*", "Mamba2-*", "Qwen3Next-*")
def test_greedy_text_equals_transformers_generate(kind: str, name: str) -> None:
    check_greedy(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "lookup", "model", "self", "always-wrong"])
@on_each
def test_two_hundred_tokens_equal_transformers_generate(kind: str, name: str) -> None:
    check_greedy(kind, name, 200, 4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", [kind if kind in MAIN else pytest.param(kind, marks=pytest.mark.slow) for kind in HYBRIDS]
)
def test_drafts_rejected_at_every_position_keep_the_distribution(kind: str) -> None:
    check_law(kind)


@on_each
@pytest.mark.fast("Lfm2", "Mamba2", "Qwen3_5")
def test_a_rejected_draft_leaves_the_states_as_if_it_had_never_been_fed(kind: str) -> None:
    check_states(kind)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.fast("Mamba2", "Qwen3Next", "OlmoHybrid")
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


@pytest.mark.thorough
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

    for ids in ([*range(1, 13)], [*range(1, 13), 7, 8, 9]):
        model.logits(ids, 3, tail=torch.tensor([7, 8]))  # the first starts at a prompt's end, whose copy exists

    assert len(model.states.checkpoints._at_prompts) == MAX_CHECKPOINTS
    assert len(model.states.checkpoints._known()) == MAX_COPIES


def test_only_a_copy_that_is_needed_no_longer_is_overwritten() -> None:
    given, made = list[object](), list[object]()

    def copy(unneeded: object) -> object:
        given.append(unneeded)
        made.append(object())
        return made[-1]

    kept = Checkpoints[object](copy)
    for length in (3, 5):
        kept.note_draft(length)
    kept.note_prompt(5)  # keeps the copy that was made before the draft
    for length in (7, 9):
        kept.note_draft(length)
    kept.forget_after(8)
    kept.note_draft(8)

    assert given == [None, made[0], None, made[2], made[3]]
    assert [kept.best(length) for length in (4, 6, 9)] == [None, (5, made[1]), (8, made[4])]


@pytest.mark.parametrize("dtype", thorough_except([torch.bfloat16], [torch.float32, torch.bfloat16]))
@on_each
@pytest.mark.fast("Lfm2-*", "Mamba2-*", "Qwen3_5-*")
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
