"""Real servers that run already: SPECGEN_TEST_SERVER with drafts, SPECGEN_TEST_BASELINE the same model without."""

from __future__ import annotations

import os

import pytest

from specgen.core.metrics import Counts
from specgen.runtime.servers.server import open_server
from specgen.runtime.servers.values import parse_address
from tests.runtime.servers.real import answered

pytestmark = pytest.mark.server


def asked(variable: str) -> tuple[str, Counts]:
    url = os.environ.get(variable)
    if url is None:
        pytest.skip(f"{variable} names no server")
    return answered(open_server(parse_address(url)))


def test_counts_are_the_growth_of_the_servers_counters_and_text_is_that_without_drafts() -> None:
    text, counts = asked("SPECGEN_TEST_SERVER")
    own, plain = asked("SPECGEN_TEST_BASELINE")

    assert counts.num_drafted > 0
    assert plain.num_drafted == 0
    assert text == own
