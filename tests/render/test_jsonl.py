from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.baseline import Baseline
from specgen.core.errors import PairError
from specgen.core.events import Notice, Prefill, TextEvent
from specgen.core.settings import SamplingSettings
from specgen.render.jsonl import (
    dumps,
    error_document,
    event_document,
    result_document,
    start_document,
)
from specgen.render.views import NdjsonView
from tests.profiles import num_examples
from tests.render.runs import counts, info, report, warmed_up
from tests.render.screens import EXAMPLE, answer, final, generations, show_all

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)


def _reject(constant: str) -> None:
    raise AssertionError(constant)


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_reject)


def test_the_start_document_has_models_and_settings() -> None:
    document = start_document(info(), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    assert document["type"] == "start"
    assert document["schema_version"] == 1
    assert document["time"] == "2026-01-02T03:04:05.000Z"
    assert (
        document["target"].items()
        >= {
            "id": "Qwen/Qwen2.5-7B-Instruct",
            "revision": None,
            "quant": "nf4",
            "dtype": "bfloat16",
            "device": "cuda:0",
        }.items()
    )
    assert document["speculative"] == {
        "method": "draft_model",
        "num_spec_tokens": 5,
        "schedule": "constant",
        "num_tree_nodes": 0,
        "verification": "exact_match",
    }
    assert (
        document["sampling"].items() >= {"do_sample": False, "temperature": 0.0, "seed": 0, "source": "options"}.items()
    )
    assert document["max_new_tokens"] == 256


def test_a_run_without_a_draft_model_has_none() -> None:
    document = start_document(info("none", 0, SamplingSettings(0.5, seed=7)), datetime.now(UTC))

    assert document["draft"] is None
    assert document["speculative"]["method"] == "none"
    assert document["speculative"]["verification"] == "rejection_sampling"
    assert document["sampling"]["seed"] == 7


def test_the_guarantee_is_next_to_its_name_in_version_0_1_0() -> None:
    sampled = start_document(info(sampling=SamplingSettings(0.5)), datetime.now(UTC))

    assert sampled["guarantee"] == {"class": "same_distribution", "is_lossless": True, "batch_invariance": None}
    assert sampled["promise"] == {"class": "same_law", "is_lossless": True, "row_check": None}


def test_events_become_documents() -> None:
    assert event_document(Prefill(9, 2, 0.04, 0.01)) == {
        "type": "prefill",
        "prompt_tokens": 9,
        "reused_tokens": 2,
        "seconds": 0.05,
    }
    assert event_document(Notice("draft", "gone")) == {"type": "warning", "code": "draft", "message": "gone"}
    assert event_document(final("…")) == {"type": "text", "text": "…"}
    assert event_document(final()) is None


def test_a_step_has_every_token_with_its_state() -> None:
    document = event_document(EXAMPLE)

    assert document is not None
    assert document.items() >= {"type": "step", "index": 0, "drafted": 5, "accepted": 2, "seconds": 0.031}.items()
    assert [(token["text"], token["state"]) for token in document["tokens"]] == [
        (" The", "accepted"),
        (" quick", "accepted"),
        (" dog", "rejected"),
        (" and", "discarded"),
        (" cat", "discarded"),
        (" fox", "correction"),
    ]


def test_the_result_has_all_figures() -> None:
    document = result_document(report(counts((5, 2)), 0.017))

    assert document["text"] == " The quick fox"
    assert document["finish_reason"] == "stop"
    assert document["usage"].items() >= {"prompt_tokens": 9, "completion_tokens": 3}.items()
    assert document["timings"] == {
        "load_s": 6.1,
        "prefill_s": 0.05,
        "decode_s": 0.03,
        "draft_s": 0.01,
        "verify_s": 0.02,
        "ttft_s": 0.08,
        "total_s": 0.5,
        "tokens_per_s": pytest.approx(100),
        "peak_memory_bytes": 6 * 2**30,
    }
    assert document["stats"] == {
        "num_spec_steps": 1,
        "num_draft_tokens": 5,
        "num_accepted_draft_tokens": 2,
        "num_rejected_draft_tokens": 1,
        "num_discarded_draft_tokens": 2,
        "num_lookup_draft_tokens": 0,
        "num_accepted_lookup_draft_tokens": 0,
        "draft_acceptance_rate": 0.4,
        "conditional_acceptance_rate": pytest.approx(2 / 3),
        "mean_acceptance_length": 3.0,
        "block_efficiency": 3.0,
        "num_tree_steps": 0,
        "num_tree_nodes": 0,
        "draft_share": pytest.approx(1 / 3),
        "acceptance_histogram": [0, 0, 1, 0, 0, 0],
        "per_position_acceptance_rate": [1, 1, 0, 0, 0],
        "conditional_per_position_acceptance_rate": [1, 1, 0, None, None],
    }
    assert document["baseline"].items() >= {"method": "calibrate", "tokens": 8, "seconds_per_token": 0.017}.items()
    assert document["speedup"] == pytest.approx(1.7)


def test_warm_up_is_shown_next_to_the_speed_without_it() -> None:
    timings = result_document(report(warmed_up(counts((5, 2)))))["timings"]

    assert (timings["decode_s"], timings["draft_s"], timings["verify_s"]) == pytest.approx((0.83, 0.01, 0.02))
    assert (timings["warmup_s"], timings["warmup_tokens"]) == (pytest.approx(0.8), 2)
    assert timings["tokens_per_s"] == pytest.approx(100)


def test_what_was_not_measured_is_null() -> None:
    document = result_document(report(counts(), None, finish_reason="interrupted"))

    assert document["finish_reason"] == "interrupted"
    assert document["baseline"] is None
    assert document["speedup"] is None
    assert document["timings"]["tokens_per_s"] is None
    assert document["timings"]["ttft_s"] is None
    assert document["stats"]["draft_acceptance_rate"] is None
    assert document["stats"]["mean_acceptance_length"] is None


def test_an_error_carries_the_exit_code() -> None:
    document = error_document(PairError("differs", "same family"))

    assert (
        document.items()
        >= {
            "type": "error",
            "code": "draft_incompatible",
            "message": "differs",
            "hint": "same family",
            "exit_code": 4,
        }.items()
    )


@given(generations(ANY_TEXT))
@settings(max_examples=num_examples(60))
def test_texts_of_the_events_concatenate_to_the_text_of_the_result(events: list[TextEvent]) -> None:
    stream = io.BytesIO()
    view = NdjsonView(stream)

    show_all(view, events)
    view.write(result_document(report(counts((5, 2)), text=answer(events))))

    *steps, result = [_read(line) for line in stream.getvalue().decode().splitlines()]
    texts = [
        token["text"]
        for step in steps
        for token in (step["tokens"] if step["type"] == "step" else [{"text": step["text"], "state": "accepted"}])
        if token["state"] not in ("rejected", "discarded")
    ]
    assert "".join(texts) == result["text"] == answer(events)


@given(ANY_TEXT)
def test_json_is_one_inert_line_that_gives_the_text_back(text: str) -> None:
    line = dumps({"text": text, text: [text]})

    assert line.isprintable() or all(ord(character) >= 0xA0 for character in line if not character.isprintable())
    assert not any(character in line for character in "\n\x7f\x85\x9b\u2028\u202e\u2066\ufeff")
    line.encode()
    assert _read(line) == {"text": text, text: [text]}


def test_readable_text_is_not_escaped() -> None:
    assert dumps({"text": "日本 🙂 é"}) == '{"text":"日本 🙂 é"}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(value: float) -> None:
    assert _read(dumps({"a": value, "b": [value, (value, 1.5)]})) == {"a": None, "b": [None, [None, 1.5]]}

    whole = result_document(report(counts((5, 2)), baseline=Baseline("full", 3, value)))
    assert _read(dumps(whole))["speedup"] is None


def test_every_event_is_written_and_flushed_at_once() -> None:
    class Counting(io.BytesIO):
        num_flushes = 0

        def flush(self) -> None:
            self.num_flushes += 1

    stream = Counting()
    view = NdjsonView(stream)

    view.show(Prefill(9, 0, 0.05, 0.0))
    view.show(EXAMPLE)
    view.show(final())
    view.close()

    assert stream.num_flushes == 2
    assert stream.getvalue().count(b"\n") == 2


@pytest.mark.fault("F109")
def test_the_result_has_the_ids_of_the_answer() -> None:
    assert result_document(report(counts(), None, token_ids=(5, 2)))["token_ids"] == [5, 2]
    assert result_document(report(counts(), None))["token_ids"] is None
