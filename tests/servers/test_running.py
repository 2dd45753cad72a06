"""Real servers that run already: SPECGEN_TEST_SERVER with drafts, SPECGEN_TEST_BASELINE the same model without."""

from __future__ import annotations

import os

import pytest

from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo, RunInfo
from specgen.core.settings import SamplingSettings
from specgen.runtime.served import ServedAnswer
from specgen.servers.server import open_server
from specgen.servers.values import ChatRequest, parse_address

PROMPT = "Repeat: one two three four, one two three four, one two"
pytestmark = pytest.mark.server


def answered(variable: str) -> tuple[str, Counts]:
    """Returns an answer and its counts, once they are those of the server's counters."""
    url = os.environ.get(variable)
    if url is None:
        pytest.skip(f"{variable} names no server")
    server = open_server(parse_address(url))
    info = RunInfo(ModelInfo("any", "", "", ""), None, "server", 0, SamplingSettings(), "default", 24, 0.0)
    before = server.counters()
    request = ChatRequest([{"role": "user", "content": PROMPT}], 24, {"temperature": 0})
    answer = ServedAnswer(server, request, info)
    for _ in answer:
        pass
    after = server.counters()
    if before is not None and after is not None:
        grown, counts = after.since(before), answer.counts
        assert grown is not None
        assert (grown.num_drafted, grown.num_accepted) == (counts.num_drafted, counts.num_accepted)
        assert grown.num_rounds == counts.num_rounds
    return answer.text, answer.counts


def test_counts_are_the_growth_of_the_servers_counters_and_text_is_that_without_drafts() -> None:
    text, counts = answered("SPECGEN_TEST_SERVER")
    own, plain = answered("SPECGEN_TEST_BASELINE")

    assert counts.num_drafted > 0
    assert plain.num_drafted == 0
    assert text == own
