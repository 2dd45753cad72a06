"""Tests passes over trees: each row computes what a pass over its own path computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch

from specgen.core.draft_tree import ROOT, depths_of
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.tree import TreeDrafter
from specgen.models import kv_slots
from specgen.models.decoder_model import DecoderModel
from specgen.models.kv_slots import SliceSlots
from tests.decoders import decoder_model, decoder_of
from tests.draft_heads import SHAPES, open_draft, tiny_draft
from tests.engine import test_greedy_equality
from tests.fakes import assert_close, cached, ids_of, rounds_of, run_events, sampler, tiny_model
from tests.models.test_decoder import FAMILIES, built_decoder
from tests.models.test_formats import int8_linear, needs_kernels

KINDS = ["llama", "qwen2", "mistral"]
"""Those of `tiny_model`; all families are in `FAMILIES`."""
FAST_FAMILIES = pytest.mark.fast("llama-?", "mistral-window-*", "gemma3-*", "smollm3-*")
"""Plain attention, a window, both in turn, layers without rotation. Other differences do not concern trees."""
TEXT = [1, 17, 40, 17, 40, 9, 88, 3, 5, 61, 30, 2, 7]
Tree = tuple[list[int], list[int]]


def random_tree(seed: int, num_rows: int) -> Tree:
    """Returns tokens and parents in preorder; siblings may be equal, which the rows must not notice."""
    chosen = random.Random(seed)
    parents: list[int] = []
    path: list[int] = []
    for row in range(num_rows):
        path = path[: chosen.randint(0, len(path))]
        parents.append(path[-1] if path else ROOT)
        path.append(row)
    return [chosen.randrange(96) for _ in parents], parents


def by_levels(tree: Tree) -> Tree:
    """Returns the same tree in the order of depths: no row follows its parent at once."""
    tokens, parents = tree
    order = sorted(range(len(parents)), key=depths_of(parents).__getitem__)
    places = {row: place for place, row in enumerate(order)} | {ROOT: ROOT}
    return [tokens[row] for row in order], [places[parents[row]] for row in order]


def path_to(row: int, parents: list[int]) -> list[int]:
    path = [row]
    while parents[path[0]] != ROOT:
        path.insert(0, parents[path[0]])
    return path


def by_paths(model: DecoderModel, tree: Tree) -> torch.Tensor:
    """Computes each row's logits in a pass over its path alone, after the text."""
    tokens, parents = tree
    rows = []
    for row in range(len(tokens)):
        model.rewind(len(TEXT))
        rows.append(model.logits([*TEXT, *(tokens[index] for index in path_to(row, parents))], 1))
    return torch.cat(rows)


def check_rows(kind: str, seed: int, num_first: int = 17) -> None:
    tokens, parents = random_tree(seed, 17)
    model, alone = (DecoderModel(built_decoder(kind), 96) for _ in range(2))
    model.feed(TEXT)
    alone.feed(TEXT)

    first = model.tree_logits(torch.tensor(tokens[:num_first]), parents[:num_first])
    rest = [model.tree_logits(torch.tensor(tokens[num_first:]), parents[num_first:])] if num_first < 17 else []

    assert model.length == len(TEXT)
    assert_close(torch.cat([first, *rest]), by_paths(alone, (tokens, parents)))


def check_kept_paths() -> None:
    for seed in range(4):
        check_kept_path("llama", seed)


def check_kept_path(kind: str, seed: int) -> None:
    """After a path is kept, the model continues as if it had read that path only."""
    tokens, parents = random_tree(seed, 17)
    path = path_to(random.Random(seed).randrange(17), parents)
    text = [*TEXT, *(tokens[row] for row in path), 33]
    model, alone = (DecoderModel(built_decoder(kind), 96) for _ in range(2))
    model.feed(TEXT)
    model.tree_logits(torch.tensor(tokens), parents)

    model.keep_rows(path)

    assert model.length == len(TEXT) + len(path)
    assert_close(model.logits(text, 1), alone.logits(text, 1))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", FAMILIES)
@FAST_FAMILIES
def test_each_row_computes_what_a_pass_over_its_path_computes(kind: str, seed: int) -> None:
    check_rows(kind, seed)


@pytest.mark.parametrize("num_first", [1, 6])
@pytest.mark.parametrize("kind", FAMILIES)
@FAST_FAMILIES
def test_a_tree_may_grow_over_several_passes(kind: str, num_first: int) -> None:
    check_rows(kind, 9, num_first)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", FAMILIES)
@FAST_FAMILIES
def test_a_kept_path_is_where_its_tokens_would_be(kind: str, seed: int) -> None:
    check_kept_path(kind, seed)


@pytest.mark.parametrize("order", [lambda tree: tree, by_levels], ids=["preorder", "levels"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_attend_one_by_one_equal_passes_over_one_token_bit_for_bit(
    kind: str, order: Callable[[Tree], Tree]
) -> None:
    """Only attention, since the products of float32 differ by the number of rows."""
    spec = decoder_of(tiny_model(kind)).spec
    tokens, parents = order(random_tree(3, 12))
    generator = torch.Generator().manual_seed(0)

    def heads(count: int, num_heads: int) -> torch.Tensor:
        return torch.randn(count, num_heads, spec.head_size, generator=generator)

    def attend(slots: SliceSlots, parts: list[torch.Tensor]) -> torch.Tensor:
        return slots.rotate_and_attend(0, torch.cat(parts[:2], dim=1), parts[2], None)

    text = [heads(20, number) for number in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
    rows = [heads(12, number) for number in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
    slots, alone = (SliceSlots(spec, torch.empty(0), attends_by_row=True) for _ in range(2))
    slots.begin(0, 20)
    attend(slots, text)

    slots.begin_rows(20, parents)
    together = attend(slots, rows)

    for row in range(len(tokens)):
        alone.begin(0, 20)
        attend(alone, text)
        for depth, index in enumerate(path_to(row, parents)):
            alone.begin(20 + depth, 1)
            single = attend(alone, [part[index : index + 1] for part in rows])
        assert torch.equal(together[row], single[0])
    slots.keep_rows(path_to(11, parents))
    kept = slots._keys[0][:, 20 : 20 + len(path_to(11, parents))]
    assert torch.equal(kept, rows[1][path_to(11, parents)].transpose(0, 1))


def test_rewinding_drops_the_tree() -> None:
    model, alone = cached(tiny_model()), cached(tiny_model())
    model.feed(TEXT)
    alone.feed(TEXT)
    model.tree_logits(torch.tensor([4, 5]), [ROOT, ROOT])

    model.rewind(len(TEXT))

    found = model.tree_logits(torch.tensor([6, 7]), [ROOT, 0])
    assert_close(found, by_paths(alone, ([6, 7], [ROOT, 0])))


@pytest.mark.parametrize("name", SHAPES)
def test_each_row_of_a_draft_head_computes_what_its_path_computes(name: str) -> None:
    module = tiny_model()
    target = cached(module)
    draft, alone = (open_draft(tiny_draft(name, module, "trees"), target) for _ in range(2))
    # Three levels, since the row of a token needs the output of its parent.
    tokens, parents = [4, 9, 60, 4, 4, 33, 71], [ROOT, ROOT, 0, 0, 1, 2, 4]
    text = TEXT[:6]
    target.feed(text[:-1])
    draft.logits(text, 1)

    found = [draft.tree_logits(torch.tensor(tokens[a:b]), parents[a:b]) for a, b in ((0, 2), (2, 5), (5, 7))]

    for row, logits in enumerate(torch.cat(found)):
        alone.rewind(min(alone.length, len(text) - 1))
        path = torch.tensor([tokens[index] for index in path_to(row, parents)])
        assert_close(logits[None], alone.logits(text, 1, path))
    for model in (draft, alone):
        model.rewind(len(text) - 1)
    assert_close(draft.logits(text, 1), alone.logits(text, 1))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.fast("*oracle")
def test_greedy_text_with_trees_of_draft_heads_equals_transformers_generate(name: str) -> None:
    module, prompt = tiny_model(), test_greedy_equality.PROMPT
    target = cached(module)
    head = open_draft(tiny_draft(name, module, "trees"), target)
    drafter = TreeDrafter(head, 96, sampler(), columns=head.columns)

    events = run_events(target, drafter, prompt, max_new_tokens=40, draft_length=TreeLength(7), num_draft_tokens=4)

    assert tuple(ids_of(events)) == test_greedy_equality.reference("llama")
    if "oracle" in name:
        assert all(round_.num_accepted == len(round_.draft_ids) for round_ in rounds_of(events))


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_an_int8_target_writes_the_same_text_with_trees_bit_for_bit(kind: str) -> None:
    decoder = decoder_model(tiny_model(kind), 96, int8_linear).decoder
    make = partial(DecoderModel, decoder, 96, attends_by_row=True)
    plain, together = make(), make()
    tokens, parents = random_tree(5, 9)
    for model in (plain, together):
        model.feed(TEXT)

    found = together.tree_logits(torch.tensor(tokens), parents)
    together.keep_rows(path_to(8, parents))

    for row in range(9):
        plain.rewind(len(TEXT))
        ids = [*TEXT, *(tokens[index] for index in path_to(row, parents))]
        for end in range(len(TEXT) + 1, len(ids) + 1):
            alone = plain.logits(ids[:end], 1)
        assert torch.equal(found[row], alone[0])
    assert torch.equal(together.logits([*ids, 4], 1), plain.logits([*ids, 4], 1))


def sibling_sees_sibling(plant: pytest.MonkeyPatch) -> None:
    original = kv_slots.tree_mask

    def leaky(parents: list[int], num_new: int, text: tuple[int, int], window: int | None) -> torch.Tensor:
        siblings = [[other for other in range(row) if parents[other] == parents[row]] for row in range(len(parents))]
        mask = original(parents, num_new, text, window)
        for row, others in enumerate(siblings):
            mask[row, [text[1] - text[0] + other for other in others]] = True
        return mask

    plant.setattr(kv_slots, "tree_mask", leaky)


def position_by_row(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(kv_slots, "depths_of", lambda parents: tuple(range(len(parents))))


def path_not_moved(plant: pytest.MonkeyPatch) -> None:
    original = SliceSlots.keep_rows
    plant.setattr(SliceSlots, "keep_rows", lambda self, rows: original(self, range(len(rows))))


def path_moved_one_too_far(plant: pytest.MonkeyPatch) -> None:
    original = SliceSlots.keep_rows
    plant.setattr(SliceSlots, "keep_rows", lambda self, rows: original(self, [rows[0], *(row + 1 for row in rows[1:])]))


@pytest.mark.parametrize("bug", [sibling_sees_sibling, position_by_row], ids=lambda bug: bug.__name__)
def test_a_planted_bug_in_the_rows_is_caught(bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        check_rows("llama", 1)


@pytest.mark.parametrize("bug", [path_not_moved, path_moved_one_too_far], ids=lambda bug: bug.__name__)
def test_a_planted_bug_in_moving_is_caught(bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        check_kept_paths()


def test_depths_follow_from_parents() -> None:
    assert depths_of([ROOT, 0, 1, 0, ROOT, 4]) == (0, 1, 2, 1, 0, 1)
