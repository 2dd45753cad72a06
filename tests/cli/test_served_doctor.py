"""`specgen doctor --server`: what a server is and what it tells."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli
from tests.runtime.servers.fake import (
    LLAMA_PAGES,
    LLAMA_STREAM,
    PLAIN_PAGES,
    as_events,
    as_json,
    chunk,
    recorded,
    serving,
)


def test_a_server_is_described_by_what_it_says_and_does(cli: Cli) -> None:
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake:
        found = json.loads(cli("doctor", "--server", fake.url, "--json").out)
        shown = cli("doctor", "--server", fake.url)

    assert (found["server"]["engine"], found["server"]["window"]) == ("llama-server", 4096)
    assert (found["server"]["acceptance_source"], found["stats"]["num_draft_tokens"]) == ("response", 19)
    assert shown.code == 0
    assert {"server", "model", "drafts", "reported"} <= {line.split()[0] for line in shown.out.decode().splitlines()}


def test_what_a_silent_server_could_tell_is_advised(cli: Cli) -> None:
    with serving(PLAIN_PAGES, as_events(chunk("one", "stop"))) as fake:
        found = json.loads(cli("doctor", "--server", fake.url, "--json").out)

    assert found["server"]["advice"]
    assert found["stats"]["num_draft_tokens"] is None


@pytest.mark.parametrize("options", [("--measure",), ("-d", "lookup"), ("--quant", "nf4")])
def test_what_needs_models_here_is_refused(cli: Cli, options: tuple[str, ...]) -> None:
    assert cli("doctor", "--server", "http://localhost:1", *options).code == 2


def test_a_server_that_refuses_the_key_ends_with_10_and_a_document(cli: Cli) -> None:
    with serving({"/v1/models": as_json({}, 401)}) as fake:
        ended = cli("doctor", "--server", fake.url, "--json")

    assert (ended.code, json.loads(ended.out)["code"]) == (10, "server_denied")
