"""Recorded passes over trees: each row computes what a pass over its own path computes, wherever the tree is."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.draft_tree import ROOT
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.contract import TreeTarget, can_branch
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.sampling import Sampler
from specgen.models.decoder_model import DecoderModel
from specgen.models.static import draft_head, inputs
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.inputs import MAX_ROWS
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.slots import TensorSlots
from specgen.models.static.trees import TreeInputs
from tests.decoders import decoder_model, decoder_of
from tests.draft_heads import SHAPES, open_draft, tiny_draft
from tests.fake_cuda import FAKE, fake_cuda
from tests.fakes import CPU, assert_close, ids_of, rounds_of, run_events, sampler, tiny_model
from tests.models.static.builders import segmented_model, static_model, traces_of, whole_model
from tests.models.static.recorder import TraceRecorder
from tests.models.static.test_on_device import SAMPLINGS, run, static
from tests.models.static.test_static_model import NUM_TOKENS, PROMPT, greedy_text, model_of, poison
from tests.models.test_decoder import DIFFERENT, FAMILIES, build, built_decoder
from tests.models.test_trees import path_to, random_tree
from tests.profiles import num_examples, thorough_except

Plant = pytest.MonkeyPatch


@cache
def pair(kind: str) -> tuple[StaticModel, DecoderModel]:
    """A model on recorded passes, and the same weights without."""
    static = StaticModel(DecoderPass(built_decoder(kind)), 96, TraceRecorder())
    return static, DecoderModel(built_decoder(kind), 96)


def check_tree(kind: str, seed: int, num_first: int = MAX_ROWS, models: Any = None) -> None:
    """Compares the rows of trees with their paths, and keeps a path; three times, so that the last one is replayed."""
    model, plain = models or pair(kind)
    chosen = random.Random(seed)
    model.rewind(0)
    plain.rewind(0)
    text = [chosen.randrange(96) for _ in range(chosen.randint(3, 30))]
    for turn in range(3):
        tokens, parents = random_tree(seed + turn, chosen.choice([3, 9, MAX_ROWS]))
        for each in (model, plain):
            each.feed(text)
        poison(model)
        parts = [slice(0, num_first), slice(num_first, None)]
        for part in parts if len(tokens) > num_first else parts[:1]:
            expected = plain.tree_logits(torch.tensor(tokens[part]), parents[part])
            assert_close(model.tree_logits(torch.tensor(tokens[part]), parents[part]), expected)
            assert model.length == len(text)
        path = path_to(chosen.randrange(len(tokens)), parents)
        for each in (model, plain):
            each.keep_rows(path)
        text += [*(tokens[row] for row in path), chosen.randrange(96)]
        assert model.length == len(text) - 1
        assert_close(model.logits(text, 1), plain.logits(text, 1))


@pytest.mark.parametrize("num_first", [MAX_ROWS, 1, 6])
@pytest.mark.parametrize("kind", thorough_except(DIFFERENT, FAMILIES))
@pytest.mark.fast("llama-*", "gemma3-6", "phi3-window-17")
def test_rows_of_trees_equal_those_without_recording(kind: str, num_first: int) -> None:
    check_tree(kind, 5 * num_first, num_first)


@given(st.integers(0, 999), st.integers(1, MAX_ROWS))
@settings(max_examples=num_examples(15))
def test_any_tree_equals_that_without_recording(seed: int, num_first: int) -> None:
    check_tree("gemma3", seed, num_first)


def test_a_tree_grows_while_the_cache_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 16)
    for seed in range(4):
        check_tree("llama", seed, 2, [pair.__wrapped__("llama")[0], pair("llama")[1]])


def test_a_recording_depends_on_neither_position_nor_tree() -> None:
    model = static_model(model_of("llama"))
    for length, seed in ((25, 1), (9, 2)):
        model.rewind(min(length, model.length))
        model.feed(list(range(length)))
        model.replays.clear()
        for _ in range(2):
            tokens, parents = random_tree(seed, 6)
            model.rewind(length)
            model.tree_logits(torch.tensor(tokens), parents)
            model.tree_logits(torch.tensor(tokens), parents)

    # The first and the second half of the tree are one recording.
    first, second = (trace.signature() for trace in traces_of(model)[-2:])
    assert first == second
    assert len(first) > 50


@pytest.mark.parametrize("kind", thorough_except(["llama"], DIFFERENT))
def test_greedy_text_with_trees_equals_transformers(kind: str) -> None:
    target, draft = static_model(model_of(kind)), static_model(model_of("llama"))
    drafter = TreeDrafter(draft, 96, sampler())

    events = run_events(target, drafter, PROMPT, max_new_tokens=NUM_TOKENS, draft_length=TreeLength(6))

    assert tuple(ids_of(events)) == greedy_text(kind)
    rounds = rounds_of(events)
    assert any(round_.tree is not None and round_.tree.num_leaves > 1 for round_ in rounds)
    assert any(key[0] == "tree" for model in (target, draft) for key in model.replays.recorded_keys)  # type: ignore[index]
    assert rounds[0].is_warmup
    assert not all(round_.is_warmup for round_ in rounds)


def test_one_seed_gives_one_text_with_trees_and_without() -> None:
    sampling = SamplingSettings(temperature=0.9, seed=5, same_text=True)

    def text(draft_length: TreeLength | None) -> list[int]:
        own = Sampler.seeded(sampling, CPU, 96)
        target, draft = static_model(model_of("llama")), static_model(model_of("llama", 1))
        drafter = NoDrafter() if draft_length is None else TreeDrafter(draft, 96, own)
        return ids_of(list(decode(target, drafter, PROMPT, own, DecodeOptions(DecodeSettings(30, 4), draft_length))))

    assert text(TreeLength(6)) == text(None)


# As for chains, all processors at once stand for each of them.
@pytest.mark.parametrize(
    ("drafts", "name"),
    thorough_except(
        [(drafts, name) for drafts in ("model", "head") for name in ("greedy", "processed")],
        [
            *(("model", name) for name in ("greedy", "greedy-penalty", "processed", "same-text")),
            *(("head", name) for name in ("greedy", "processed")),
        ],
    ),
)
@pytest.mark.fast("model-greedy")
def test_a_tree_reads_the_device_once_an_expansion(name: str, drafts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once for the verdict; uploads are from pinned memory, so they don't wait.

    A sampling target also reads each decision about a token, and its own token. Drawing a draft's tokens reads nothing.
    """
    models = [build("llama", num_hidden_layers=1), tiny_model("llama", 1, num_hidden_layers=1)]
    folder = tiny_draft("head subset", models[0], "one-layer-tree")
    with fake_cuda(monkeypatch) as device:
        target, draft = (static(decoder_of(model).to(FAKE)) for model in models)
        head: Any = open_draft(folder, target)

        def drafter(own: Sampler) -> TreeDrafter:
            return TreeDrafter(*((draft, 96, own) if drafts == "model" else (head, 96, own, None, head.columns)))

        events, waits = run(target, drafter, SAMPLINGS[name], device, TreeLength(5))

    timed = [round_ for round_ in rounds_of(events) if not round_.is_warmup]
    assert any(round_.tree is not None and round_.tree.num_leaves > 1 for round_ in timed)
    assert len(waits) >= 3
    assert [uploads for _, uploads in waits] == [[]] * len(waits)
    others = [[read for read in reads if "tree_verification" not in read] for reads, _ in waits]
    assert [len(reads) for reads in others] == [1 + (round_.num_passes or 0) for round_ in timed]


HEADS = thorough_except(["head layers", "head features"], SHAPES)


def check_head(name: str) -> None:
    """Compares the rows of trees with those of the same head without recording; the last trees are replayed."""
    model = model_of("llama")
    folder, targets = tiny_draft(name, model, "static-trees"), (static_model(model), decoder_model(model, 96))
    heads = [open_draft(folder, target) for target in targets]
    text = PROMPT
    for seed in range(4):
        chosen = random.Random(seed)
        # Levels, since the row of a token needs the output of its parent.
        ends = [0, 2, 5, 5 + chosen.randint(1, 4)]
        parents = [
            ROOT,
            ROOT,
            *(chosen.randrange(2) for _ in range(3)),
            *(chosen.randrange(2, 5) for _ in range(5, ends[3])),
        ]
        tokens = [chosen.randrange(96) for _ in parents]
        for each in (*targets, *heads):
            each.rewind(min(each.length, len(text) - 1))
        for target in targets:
            target.feed(text)
        assert_close(*(head.logits(text, 1) for head in heads))
        for first, last in pairwise(ends):
            rows = torch.tensor(tokens[first:last]), parents[first:last]
            assert_close(*(head.tree_logits(*rows) for head in heads))
        text = [*text, *tokens[:3]]


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_a_draft_head_equal_those_without_recording(name: str) -> None:
    check_head(name)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.thorough
def test_greedy_text_with_trees_of_a_draft_head_equals_transformers(name: str) -> None:
    target = static_model(model_of("llama"))
    head = open_draft(tiny_draft(name, model_of("llama"), "static-trees"), target)
    drafter = TreeDrafter(head, 96, sampler(), columns=head.columns)

    events = run_events(target, drafter, PROMPT, max_new_tokens=NUM_TOKENS, draft_length=TreeLength(7))

    assert tuple(ids_of(events)) == greedy_text("llama")
    assert any(round_.tree is not None and round_.tree.num_leaves > 1 for round_ in rounds_of(events))
    assert any(key[0] == "tree" for key in head.replays.recorded_keys if isinstance(key, tuple))


def test_only_passes_on_one_device_branch() -> None:
    assert isinstance(static_model(model_of("llama")), TreeTarget)
    assert can_branch(static_model(model_of("llama")))
    assert not can_branch(whole_model(model_of("llama")))
    assert not can_branch(segmented_model(model_of("llama"), (1, 1)))


def test_features_of_a_kept_path_are_those_of_its_tokens() -> None:
    model, plain = pair.__wrapped__("llama")
    found = [each.record_target_features() for each in (model, plain)]
    text = list(PROMPT)
    for seed in range(3):
        tokens, parents = random_tree(seed, 9)
        path = path_to(8, parents)
        for each in (model, plain):
            each.feed(text)
            each.tree_logits(torch.tensor(tokens), parents)
            each.keep_rows(path)
        text += [tokens[row] for row in path]
        assert_close(*(features.rows(0, len(text)) for features in found))


# planted bugs


def every_row_of_the_tree_is_seen(plant: Plant) -> None:
    original = TreeInputs.write

    def careless(self: TreeInputs, *args: Any) -> None:
        original(self, *args)
        self.sees.fill_(1)

    plant.setattr(TreeInputs, "write", careless)


def rows_rotated_by_their_place(plant: Plant) -> None:
    original = TreeInputs.write

    def careless(self: TreeInputs, start: int, parents: list[int], num_new: int) -> None:
        original(self, start, parents, num_new)
        first = start + len(parents) - num_new
        self.positions[:num_new] = torch.arange(first, first + num_new)

    plant.setattr(TreeInputs, "write", careless)


def tree_begins_one_position_late(plant: Plant) -> None:
    original = TreeInputs.write

    def careless(self: TreeInputs, *args: Any) -> None:
        original(self, *args)
        self.start += 1

    plant.setattr(TreeInputs, "write", careless)


def earlier_rows_overwritten(plant: Plant) -> None:
    original = StaticModel._run_rows

    def careless(self: StaticModel, new: Any, parents: Any) -> Any:
        first, inputs_ = self.length, self._inputs
        write = inputs_.write
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs_, "write", lambda new, position, count: write(new, first, count))
            return original(self, new, parents)

    plant.setattr(StaticModel, "_run_rows", careless)


def path_not_moved(plant: Plant) -> None:
    plant.setattr(TreeInputs, "keep_path", lambda self, stored: None)


def path_of_the_tree_before(plant: Plant) -> None:
    original = TreeInputs.write_path
    calls = iter(range(1000))

    def once(self: TreeInputs, start: int, rows: list[int]) -> None:
        if next(calls) % 3 == 0:
            original(self, start, rows)

    plant.setattr(TreeInputs, "write_path", once)


def window_forgotten(plant: Plant) -> None:
    original = TreeInputs.hidden
    plant.setattr(
        TreeInputs, "hidden", lambda self, columns, *rest: original(self, columns, *rest) & (columns >= self.start)
    )


def tree_lost_when_the_cache_grows(plant: Plant) -> None:
    original = TensorSlots.grow
    plant.setattr(TensorSlots, "grow", lambda self, capacity, kept: original(self, capacity, max(0, kept - 2)))


def outputs_of_the_row_before(plant: Plant) -> None:
    original = StaticDraftHead._run_rows

    def careless(self: StaticDraftHead, new: Any, parents: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_head, "ids_on", lambda device, above: torch.tensor([max(0, row - 1) for row in above]))
            return original(self, new, parents)

    plant.setattr(StaticDraftHead, "_run_rows", careless)


def check_all(kind: str) -> None:
    for seed, num_first in ((1, 6), (3, MAX_ROWS), (4, 2)):
        check_tree(kind, seed, num_first, pair.__wrapped__(kind))


def check_growth() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_a_tree_grows_while_the_cache_does(patch)


BUGS: list[tuple[Callable[[Plant], None], Callable[[], None]]] = [
    (every_row_of_the_tree_is_seen, partial(check_all, "llama")),
    (rows_rotated_by_their_place, partial(check_all, "llama")),
    (tree_begins_one_position_late, partial(check_all, "llama")),
    (earlier_rows_overwritten, partial(check_all, "llama")),
    (path_not_moved, partial(check_all, "llama")),
    (path_of_the_tree_before, partial(check_all, "llama")),
    (window_forgotten, partial(check_all, "mistral-window")),
    (tree_lost_when_the_cache_grows, check_growth),
    (outputs_of_the_row_before, partial(check_head, "head features")),
]


@pytest.mark.parametrize(
    "check", dict.fromkeys(check.func if isinstance(check, partial) else check for _, check in BUGS)
)
@pytest.mark.fast("check_head", "check_growth")
def test_the_checks_pass_without_a_bug(check: Callable[..., None]) -> None:
    if check is check_growth:
        check()
    else:
        check("mistral-window" if check is check_all else "head features")


@pytest.mark.thorough
@pytest.mark.parametrize(("plant_bug", "check"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_caught(
    plant_bug: Callable[[Plant], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_bug(monkeypatch)

    with pytest.raises((AssertionError, IndexError)):
        check()
