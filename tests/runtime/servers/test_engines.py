"""What the engines tell of drafts: read if it makes sense, else not at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.runtime.servers.engine import Engine
from specgen.runtime.servers.llama_server import LlamaServer
from specgen.runtime.servers.lm_studio import LmStudio
from specgen.runtime.servers.plain import PlainServer
from specgen.runtime.servers.prometheus import num_running, read_counters
from specgen.runtime.servers.sglang import Sglang
from specgen.runtime.servers.vllm import Vllm

ENGINES: list[Engine] = [Vllm(), LlamaServer(), Sglang(), LmStudio(), PlainServer()]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NAMES = (
    *("metrics", "speculative_decoding", "num_draft_tokens", "num_accepted_draft_tokens", "per_step_accepted"),
    *("per_step_drafted", "acceptance_histogram", "timings", "draft_n", "draft_n_accepted", "predicted_n", "usage"),
    *("sglext", "spec_tokens_details", "spec_num_proposed_drafts", "spec_num_correct_drafts", "spec_verify_ct"),
    *("stats", "total_draft_tokens_count", "accepted_draft_tokens_count", "completion_tokens"),
)
NESTED = st.recursive(
    st.integers(-3, 9) | st.none() | st.text(max_size=3) | st.lists(st.integers(-2, 5), max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=30,
)


@given(event=st.dictionaries(st.sampled_from(NAMES), NESTED | JSON))
def test_no_payload_is_an_error_or_gives_impossible_counts(event: dict[str, Any]) -> None:
    for engine in ENGINES:
        figures = engine.read(event)
        if figures.acceptance is not None:
            assert 0 <= figures.acceptance.num_accepted <= figures.acceptance.num_drafted
        assert figures.num_tokens is None or figures.num_tokens >= 0


def vllm(**figures: object) -> dict[str, Any]:
    return {"metrics": {"speculative_decoding": figures}}


@pytest.mark.parametrize(
    "event",
    [
        vllm(num_draft_tokens=3, num_accepted_draft_tokens=4, num_spec_steps=1),
        vllm(num_draft_tokens=3, num_accepted_draft_tokens=1, num_spec_steps=4),
        vllm(num_draft_tokens=3, num_accepted_draft_tokens=1, num_spec_steps=1, acceptance_histogram=[0, 0, 1]),
        vllm(num_draft_tokens=3, num_accepted_draft_tokens=1, per_step_accepted=[2], per_step_drafted=[3]),
        vllm(num_draft_tokens=3),
        vllm(num_draft_tokens=True, num_accepted_draft_tokens=0),
        vllm(num_draft_tokens=3.5, num_accepted_draft_tokens=1.5),
    ],
)
def test_contradictory_counts_of_vllm_are_unknown(event: dict[str, Any]) -> None:
    figures = Vllm().read(event)

    assert figures.acceptance is None
    assert figures.problem


def test_missing_counts_are_not_a_problem() -> None:
    for engine in ENGINES:
        figures = engine.read({"choices": []})
        assert (figures.acceptance, figures.problem) == (None, "")


def test_contradictory_counts_of_llama_server_are_unknown() -> None:
    figures = LlamaServer().read({"timings": {"predicted_n": 5, "draft_n": 2, "draft_n_accepted": 3}})

    assert (figures.num_drafted, bool(figures.problem)) == (None, True)


def test_sglang_tells_rejections_by_its_histogram() -> None:
    details = {
        "spec_num_proposed_drafts": 12,
        "spec_num_correct_drafts": 7,
        "spec_verify_ct": 4,
        "spec_correct_drafts_histogram": [1, 1, 0, 2],
    }

    found = Sglang().read({"sglext": {"spec_tokens_details": details}}).acceptance

    assert found is not None
    assert (found.num_drafted, found.num_accepted, found.num_rounds, found.num_rejected) == (12, 7, 4, 2)
    assert sorted(found.steps) == [(3, 0), (3, 1), (3, 3), (3, 3)]


def test_lm_studio_tells_totals_only() -> None:
    stats = {"total_draft_tokens_count": 9, "accepted_draft_tokens_count": 5, "rejected_draft_tokens_count": 4}

    found = LmStudio().read({"stats": stats}).acceptance

    assert found is not None
    assert (found.num_drafted, found.num_accepted, found.num_rounds) == (9, 5, None)


PAGE = """# HELP vllm:spec_decode_num_drafts_total x
vllm:spec_decode_num_drafts_total{engine="0"} 3.0
vllm:spec_decode_num_drafts_total{engine="1"} 1.0
vllm:spec_decode_num_drafts_created{engine="0"} 1.795854526708406e+09
vllm:spec_decode_num_draft_tokens_total{engine="0"} 9.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 1.0
"""


def test_counters_are_summed_over_engines() -> None:
    counters = read_counters(PAGE, "vllm:")

    assert counters is not None
    assert (counters.num_drafted, counters.num_accepted, counters.num_rounds, counters.num_running) == (9, 5, 4, 3)
    assert counters.accepted_by_position == (3, 2)
    assert num_running(PAGE, "vllm:") == 3
    assert read_counters(PAGE, "llamacpp:") is None


def test_growth_of_counters_is_one_request_and_none_after_a_restart() -> None:
    before = read_counters(PAGE, "vllm:")
    after = read_counters(PAGE.replace(" 9.0", " 12.0").replace("} 5.0", "} 6.0").replace("} 3.0", "} 4.0"), "vllm:")
    assert before is not None
    assert after is not None

    grown = after.since(before)

    assert grown is not None
    assert (grown.num_drafted, grown.num_accepted, grown.num_rounds, grown.source) == (3, 1, 1, "metrics")
    assert before.since(after) is None
