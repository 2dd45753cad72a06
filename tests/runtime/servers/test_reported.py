"""The table in `specgen/runtime/servers/__init__.py`: which figures the answer of each engine gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from specgen.core.events import ServedText, TokenState
from specgen.core.metrics import Detail
from specgen.core.results import ModelInfo, RunInfo
from specgen.core.settings import SamplingSettings
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.values import ChatRequest
from tests.runtime.servers.fake import (
    LLAMA_PAGES,
    LLAMA_STREAM,
    LM_STUDIO_PAGES,
    PLAIN_PAGES,
    VLLM_PAGES,
    VLLM_STREAM,
    as_events,
    chunk,
    opened,
    plain_answer,
    recorded,
    serving,
)

SGLANG_PAGES: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "big", "owned_by": "sglang"}]},
    "/server_info": {"version": "0.5.23", "speculative_algorithm": "STANDALONE"},
}
SGLANG_DETAILS = {
    "spec_num_proposed_drafts": 12,
    "spec_num_correct_drafts": 7,
    "spec_verify_ct": 4,
    "spec_correct_drafts_histogram": [1, 1, 0, 2],
}
USAGE = {"completion_tokens": 11, "prompt_tokens": 3}
SGLANG = as_events(chunk("a", "stop"), chunk(usage=USAGE, sglext={"spec_tokens_details": SGLANG_DETAILS}))
LM_STUDIO = as_events(
    chunk("a", "stop"),
    chunk(usage=USAGE, stats={"total_draft_tokens_count": 9, "accepted_draft_tokens_count": 5}),
)


@dataclass(frozen=True)
class Row:
    """What an answer gives."""

    source: str | None
    has_rounds: bool = False
    has_alpha: bool = False
    has_positions: bool = False
    has_own_time: bool = False
    marks_tokens: bool = False


def counters() -> dict[str, Any]:
    """Returns vLLM's pages with counters that grow by two rounds with each reading."""
    readings = iter(range(1, 9))

    def page() -> str:
        number = next(readings)
        counts = {"drafts": 2 * number, "draft_tokens": 6 * number, "accepted_tokens": 4 * number}
        lines = [f"vllm:spec_decode_num_{name}_total {count}" for name, count in counts.items()]
        return "\n".join([*lines, "vllm:num_requests_running 0"])

    return {**VLLM_PAGES, "/metrics": page}


ROWS = {
    "llama-server": (LLAMA_PAGES, recorded(LLAMA_STREAM), Row("response", True, True, True, True, True)),
    "vLLM": (VLLM_PAGES, recorded(VLLM_STREAM), Row("response", True, True, True, True)),
    "vLLM without the flags": (counters(), as_events(chunk("a", "stop"), chunk(usage=USAGE)), Row("metrics", True)),
    "SGLang": (SGLANG_PAGES, SGLANG, Row("response", True, True, True)),
    "LM Studio": (LM_STUDIO_PAGES, LM_STUDIO, Row("response")),
    "others": (PLAIN_PAGES, plain_answer(), Row(None)),
}


@pytest.mark.parametrize("engine", ROWS)
def test_an_answer_gives_the_figures_of_the_table_and_no_others(engine: str) -> None:
    pages, reply, expected = ROWS[engine]
    info = RunInfo(ModelInfo("any", "", "", ""), None, "server", 0, SamplingSettings(), "default", 24, 0.0)
    with serving(pages, reply) as fake:
        answer = ServedAnswer(opened(fake.url), ChatRequest([{"role": "user", "content": "Hi"}], 24), info)
        pieces = [event for event in answer if isinstance(event, ServedText)]
        report = answer.report()

    counts, served = report.counts, report.served
    assert served is not None
    assert expected == Row(
        served.acceptance,
        counts.detail >= Detail.ROUNDS and counts.block_efficiency is not None,
        counts.alpha is not None,
        bool(counts.acceptance_by_position),
        served.clock == "response",
        any(piece.state is TokenState.ACCEPTED for piece in pieces),
    )
    assert (counts.acceptance_rate is not None) == (expected.source is not None)
