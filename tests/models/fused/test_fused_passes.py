"""Passes on the fused kernels compute what plain passes do, and a row does not depend on the others.

Triton's interpreter runs the kernels, at half a second a row. It has no products in bfloat16, so these are in float32
or float16. On a card, `tests/gpu` runs them compiled, recorded and replayed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from specgen.core.results import BatchInvarianceCheck
from specgen.core.settings import SamplingSettings
from specgen.loading import draft_head_parts
from specgen.models import cuda
from specgen.models.batch_invariance import has_independent_rows
from specgen.models.decoder_model import DecoderModel
from specgen.models.fused import support
from specgen.models.fused.attention import FewRowsAttention
from specgen.models.fused.layers import FusedLayers
from specgen.models.fused.support import fits, fuses
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import PlainRecorder
from specgen.models.static.segments import SegmentedPass
from specgen.models.static.slots import TensorSlots
from tests.decoders import decoder_of
from tests.draft_heads import open_draft, tiny_draft
from tests.fakes import assert_close
from tests.models.static.recorder import TraceRecorder
from tests.models.static.test_static_model import model_of, poison
from tests.models.test_decoder import built_decoder
from tests.models.test_trees import path_to, random_tree
from tests.profiles import by_profile, thorough_except
from tests.render import runs

Plant = pytest.MonkeyPatch
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
TEXT = [random.Random(index).randrange(96) for index in range(200)]


def fused_model(decoder: Any) -> StaticModel:
    return StaticModel(DecoderPass(decoder, is_fused=True), 96, PlainRecorder())


@cache
def half_model() -> StaticModel:
    """A model whose products run on the kernels, too."""
    return fused_model(decoder_of(deepcopy(model_of("qwen2")).to(torch.float16)))


def check_passes(kind: str) -> None:
    """Compares passes: after a prompt, with a part of 128 positions that is full, and after a cut."""
    model, plain = fused_model(built_decoder(kind)), DecoderModel(built_decoder(kind), 96)
    for length, rows in ((131, by_profile(2, 3)), (24, 1)):
        for each in (model, plain):
            each.rewind(min(each.length, length - rows))
            each.feed(TEXT[: length - rows])
        poison(model)
        assert_close(model.logits(TEXT[:length], rows), plain.logits(TEXT[:length], rows))


# Caps, windows and norms on both sides; norms of queries and keys; layers without rotation.
@pytest.mark.parametrize("kind", thorough_except(["qwen3"], ["gemma2", "qwen3", "smollm3"]))
def test_passes_equal_plain_ones(kind: str) -> None:
    check_passes(kind)


@pytest.mark.thorough
def test_trees_equal_plain_ones() -> None:
    model, plain = fused_model(built_decoder("gemma3")), DecoderModel(built_decoder("gemma3"), 96)
    tokens, parents = random_tree(1, 6)
    for each in (model, plain):
        each.feed(TEXT[:20])

    for part in (slice(0, 2), slice(2, None)):
        expected = plain.tree_logits(torch.tensor(tokens[part]), parents[part])
        assert_close(model.tree_logits(torch.tensor(tokens[part]), parents[part]), expected)
    path = path_to(5, parents)
    for each in (model, plain):
        each.keep_rows(path)
    text = [*TEXT[:20], *(tokens[row] for row in path), 7]
    assert_close(model.logits(text, 1), plain.logits(text, 1))


@pytest.mark.thorough
def test_padding_rows_of_a_tree_on_an_empty_text_spoil_no_others() -> None:
    """They see nothing; 7 rows are padded to 8."""
    model, plain = fused_model(built_decoder("llama")), DecoderModel(built_decoder("llama"), 96)
    tokens, parents = random_tree(2, 7)
    model.reserve(1)
    poison(model)

    found = model.tree_logits(torch.tensor(tokens), parents)

    assert_close(found, plain.tree_logits(torch.tensor(tokens), parents))


@pytest.mark.thorough
@pytest.mark.parametrize("num_tokens", [127, 511], ids=["in two parts", "in two buckets"])
def test_a_row_is_the_same_bit_for_bit_whatever_else_is_in_the_pass(num_tokens: int) -> None:
    rows = 2  # one up to the border, one after it
    model = half_model()
    text = [index * 7 % 96 for index in range(num_tokens + rows)]
    model.rewind(0)
    model.feed(text[:num_tokens])

    alone = [model.logits(text[: num_tokens + index + 1], 1).clone() for index in range(rows)]

    model.rewind(num_tokens)
    assert torch.equal(model.logits(text, rows), torch.cat(alone))


@pytest.mark.thorough
def test_half_precision_is_within_rounding_of_plain_passes() -> None:
    model, plain = half_model(), DecoderModel(decoder_of(deepcopy(model_of("qwen2")).to(torch.float16)), 96)
    model.rewind(0)

    rows = 9  # a program of attention computes 8 of them
    found, expected = model.logits(TEXT[:rows], rows), plain.logits(TEXT[:rows], rows)

    assert 0 < float((found - expected).norm() / expected.norm()) < 4e-3


@pytest.mark.thorough
def test_segments_compute_the_same() -> None:
    split = decoder_of(model_of("llama"))
    split.split((1, len(split.layers) - 1))
    segmented = StaticModel(SegmentedPass(split, [PlainRecorder()], is_fused=True), 96, PlainRecorder())

    assert_close(segmented.logits([1, 2], 2), DecoderModel(built_decoder("llama"), 96).logits([1, 2], 2))


@pytest.mark.thorough
def test_a_draft_head_drafts_the_same_tokens(monkeypatch: Plant) -> None:
    folder = tiny_draft("head features", model_of("llama"), "static-llama")
    plain_target, target = (DecoderModel(built_decoder("llama"), 96) for _ in range(2))
    plain = open_draft(folder, plain_target)
    recorded = StaticModel(DecoderPass(target.decoder), 96, PlainRecorder())
    monkeypatch.setattr(support, "fuses", lambda spec, like: True)
    monkeypatch.setattr(draft_head_parts, "head_admission_failure", lambda *_: None)
    head = open_draft(folder, recorded)
    assert isinstance(head, StaticDraftHead)
    assert head._static_layers._fused is not None

    for each in (recorded, plain_target):
        each.feed(TEXT[:4])
    for index in range(2):
        head.draft_token(TEXT[:5], index)
        assert_close(head.drafted_logits(), plain.logits(TEXT[:5], 1, tail=head.drafted_ids(index).clone()))


# what is caught


def queries_not_rotated(plant: Plant) -> None:
    original = FewRowsAttention._store

    def unrotated(self: FewRowsAttention, projected: Any, *others: Any) -> Any:
        queries = original(self, projected, *others)
        return projected.tensor.sum(0)[:, : queries[0].numel()].to(queries.dtype).reshape(queries.shape)

    plant.setattr(FewRowsAttention, "_store", unrotated)


def window_forgotten(plant: Plant) -> None:
    original = TensorSlots.stored
    plant.setattr(TensorSlots, "stored", lambda self: [replace(one, window=None) for one in original(self)])


@pytest.mark.thorough
@pytest.mark.parametrize(("plant_bug", "kind"), [(queries_not_rotated, "llama"), (window_forgotten, "gemma3")])
def test_a_planted_bug_is_caught(plant_bug: Callable[[Plant], None], kind: str, monkeypatch: Plant) -> None:
    plant_bug(monkeypatch)

    with pytest.raises(AssertionError):
        check_passes(kind)


# where they are used


def test_norms_over_all_heads_are_left_to_plain_passes() -> None:
    assert not fits(built_decoder("olmo2").spec)
    assert not fits(replace(built_decoder("llama").spec, head_size=512))


def test_a_cpu_does_not_use_them() -> None:
    assert not fuses(built_decoder("llama").spec, torch.empty(0, dtype=torch.bfloat16))


def test_passes_that_fail_on_the_kernels_are_recorded_without_them(monkeypatch: Plant) -> None:
    def failing(self: FusedLayers, *args: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(support, "fuses", lambda spec, like: True)
    monkeypatch.setattr(FusedLayers, "run", failing)

    found = cuda.recorded(DecoderModel(built_decoder("llama"), 96), TraceRecorder())

    assert isinstance(found.model, StaticModel)
    assert (found.reason, "C compiler" in str(found.unfused_reason)) == (None, True)
    assert len(found.model.logits([1, 2, 3], 1)) == 1


def test_the_kernels_are_used_where_they_compute_the_same(monkeypatch: Plant) -> None:
    monkeypatch.setattr(support, "fuses", lambda spec, like: True)
    monkeypatch.setattr(cuda, "admission_failure", lambda *_, **options: None)

    found = cuda.recorded(DecoderModel(built_decoder("qwen2"), 96), PlainRecorder())

    assert (found.reason, found.unfused_reason) == (None, None)
    assert isinstance(found.model, StaticModel)
    assert isinstance(found.model.static_pass, DecoderPass)
    assert found.model.static_pass._last._fused is not None


# the guarantee


def test_texts_are_exact_without_trees() -> None:
    check = BatchInvarianceCheck(0.0, is_exact=True, has_exact_trees=False)
    target = replace(runs.info().target, dtype="float16", quant="none")
    info = replace(runs.info(), target=target, sampling=SamplingSettings(), batch_invariance=check)

    assert info.guarantee == "exact"
    assert replace(info, num_tree_nodes=8).guarantee == "near_tie"
    assert replace(info, batch_invariance=replace(check, has_exact_trees=True), num_tree_nodes=8).guarantee == "exact"


def test_only_products_on_the_kernels_promise_exact_rows() -> None:
    assert has_independent_rows(half_model())
    assert not has_independent_rows(fused_model(built_decoder("llama")))  # float32: they are torch's
