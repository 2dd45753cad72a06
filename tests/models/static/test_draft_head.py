"""Draft heads on recorded passes: what lies after the text, or was left by another one, is not read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specgen.core.draft_tree import ROOT
from specgen.models.static.draft_head import StaticDraftHead
from tests.decoders import decoder_model
from tests.draft_heads import SHAPES, open_draft, tiny_draft
from tests.fakes import assert_close
from tests.models.static.builders import static_model
from tests.models.static.test_static_model import model_of
from tests.profiles import thorough_except

NUM_DRAFTED = 3
HEADS = thorough_except(["head layers", "head features"], SHAPES)


def pairs(name: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """A target and its draft head, on recorded passes and on plain ones."""
    folder = tiny_draft(name, model_of("llama"), "static-llama")
    static, plain = static_model(model_of("llama")), decoder_model(model_of("llama"), 96)
    return (static, open_draft(folder, static)), (plain, open_draft(folder, plain))


@torch.inference_mode()
def poison(head: StaticDraftHead, value: float) -> None:
    """Fills what no pass may read: its inputs and outputs, and keys and values after the text."""
    for tensor in (head._given, head._output, head._outputs):
        tensor.fill_(value)
    if head._row_logits is not None:
        head._row_logits.fill_(value)
    for cached in (*head._static_layers.slots._keys, *head._static_layers.slots._values):
        cached[:, head.length - head.start :] = value


def check_drafts(name: str, before_draft: Callable[[StaticDraftHead, int], None]) -> None:
    """Compares drafts after texts that grow by any number of tokens and are cut again; the later ones are replayed."""
    (target, head), (plain_target, plain_head) = pairs(name)
    assert isinstance(head, StaticDraftHead)
    chosen, ids = random.Random(0), [1, 17]
    for turn in range(12):
        ids = ids[: max(1, len(ids) - chosen.randrange(9))]
        for each in (target, head, plain_target, plain_head):
            each.rewind(min(each.length, len(ids)))
        ids += [chosen.randrange(96) for _ in range(chosen.choice([3, 7, 10, 14, 20]))]
        target.feed(ids[:-1])
        plain_target.feed(ids[:-1])
        before_draft(head, turn)
        for index in range(NUM_DRAFTED):
            head.draft_token(ids, index)
            drafted = head.drafted_ids(index).clone()
            assert_close(head.drafted_logits(), plain_head.logits(ids, 1, tail=drafted))
    assert any(key[0] == "feed" for key in head.replays.recorded_keys if isinstance(key, tuple))


@pytest.mark.parametrize("name", HEADS)
def test_poison_after_the_text_changes_no_draft(name: str) -> None:
    check_drafts(name, lambda head, _: poison(head, 1e4))  # not NaN: a weight of 0 times NaN is NaN


@pytest.mark.parametrize("call", ["reset", "forget"])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.fast("head layers-*")
def test_a_draft_after_a_text_with_nan_is_sound(name: str, call: str) -> None:
    def spoil(head: StaticDraftHead, turn: int) -> None:
        if turn == 3:
            poison(head, float("nan"))
            getattr(head, call)()

    check_drafts(name, spoil)


def test_without_a_known_feature_drafts_and_trees_are_those_of_a_plain_head() -> None:
    """No token of the text can be read then; the output of an earlier pass must not take the place of its own."""
    (target, head), (plain_target, plain_head) = pairs("head features")
    ids = [5, 17, 40, 9, 88, 3]
    for model, features_of in ((head, target), (plain_head, plain_target)):
        features_of.feed(ids[:-1])
        model.logits(ids, 1)
        model.rewind(2)
        features = features_of.target_features
        features.first = features.end = len(ids)  # as if the target had read the text before it recorded them

    for index in range(NUM_DRAFTED):
        head.draft_token(ids, index)
        drafted = head.drafted_ids(index).clone()
        assert_close(head.drafted_logits(), plain_head.logits(ids, 1, tail=drafted))
    for model in (head, plain_head):
        model.rewind(len(ids))
        model.feed(ids)
    for tokens, parents in ((torch.tensor([7, 1]), (ROOT, ROOT)), (torch.tensor([30]), (0,))):
        assert_close(head.tree_logits(tokens, parents), plain_head.tree_logits(tokens, parents))
