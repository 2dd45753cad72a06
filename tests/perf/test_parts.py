"""The parts of a token's time sum to the time of the pass."""

from __future__ import annotations

import copy

import pytest

from specgen.models.transformers_model import TransformersModel
from tests.decoders import decoder_model
from tests.fakes import assert_close, tiny_model
from tests.perf.parts import PARTS, Stopwatch, measure, watch_ours, watch_theirs


def test_parts_sum_to_the_whole_and_the_logits_are_unchanged() -> None:
    inner = copy.deepcopy(tiny_model("qwen2"))
    ours, theirs, watch = decoder_model(inner, 96), TransformersModel(inner, 96), Stopwatch()
    before = theirs.logits([1, 5, 9], 1)
    watch_theirs(inner, watch)
    watch_ours(ours, watch)
    theirs.reset()

    seconds = measure({"before": theirs, "after": ours}, watch, 8, 1)

    for parts in seconds.values():
        assert all(parts[part] > 0 for part in PARTS if part != "attention")
        assert sum(parts[part] for part in (*PARTS, "rest")) == pytest.approx(parts["whole"])
    ours.reset()
    assert_close(ours.logits([1, 5, 9], 1), before)


def test_a_call_inside_a_part_counts_towards_that_part() -> None:
    watch = Stopwatch()
    inner = watch.timed("norms", lambda: None)

    watch.timed("products", inner)()

    taken = watch.take()
    assert taken["products"] > 0
    assert taken["norms"] == 0
    assert watch.take()["products"] == 0
