"""`specgen bench --server` against servers whose times are known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.servers.fake import LLAMA_PAGES, PLAIN_PAGES, Reply, as_events, chunk, serving

SHORT = ("-r", "2", "--num-prompts", "2", "-n", "3", "--format", "json")


def answer(seconds: float, text: str = "abc", **drafts: int) -> Reply:
    """Returns an answer of three tokens that took a server so long after the first one."""
    timings: dict[str, Any] = {"predicted_n": 3, "predicted_ms": 1000 * seconds, **drafts}
    return as_events(chunk(text, "length"), chunk(usage={"completion_tokens": 3, "prompt_tokens": 4}, timings=timings))


def test_the_speedup_is_that_of_the_servers_own_clocks(cli: Cli) -> None:
    fast, slow = answer(2.0, draft_n=2, draft_n_accepted=1), answer(3.0)
    with serving(LLAMA_PAGES, fast) as a, serving(LLAMA_PAGES, slow) as b:
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, *SHORT)
        num_requests = len(a.requests), len(b.requests)

    found = json.loads(ended.out)
    baseline, own = found["results"]
    assert (ended.code, num_requests) == (0, (5, 5))  # a warm-up, then two prompts twice
    assert baseline["draft"] is None
    assert own["summary"]["speedup"] == pytest.approx(1.5)
    assert own["summary"]["speedup_interval_95"] == pytest.approx([1.5, 1.5])
    assert own["summary"]["stats"]["draft_acceptance_rate"] == pytest.approx(0.5)
    assert own["summary"]["text"] == "same"
    assert {run["decode_s"] for run in own["runs"]} == {2.0}


def test_another_text_is_different_and_check_ends_with_6(cli: Cli) -> None:
    with serving(LLAMA_PAGES, answer(1.0, "abd")) as a, serving(LLAMA_PAGES, answer(1.0)) as b:
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, "--check", *SHORT)

    assert ended.code == 6
    own = json.loads(ended.out)["results"][1]
    assert (own["summary"]["text"], own["differences"][0]["position"]) == ("different", 2)


def test_doubts_are_warnings(cli: Cli) -> None:
    other = {**LLAMA_PAGES, "/v1/models": {"data": [{"id": "other", "owned_by": "llamacpp"}]}, "/props": {}}
    pages = {**other, "/metrics": "llamacpp:requests_processing 1\n"}
    with serving(pages, answer(1.0)) as a, serving(LLAMA_PAGES, answer(1.0)) as b:
        found = json.loads(cli("bench", "--server", a.url, "--baseline-server", b.url, *SHORT).out)

    assert {"different_models", "not_alone"} <= {warning["code"] for warning in found["warnings"]}


@pytest.mark.parametrize(("temperature", "sent"), [("0", {}), ("0.7", {"top_k": -1, "top_p": 1.0, "min_p": 0.0})])
def test_a_server_does_not_sample_with_its_own_defaults(cli: Cli, temperature: str, sent: dict[str, float]) -> None:
    with serving(LLAMA_PAGES, answer(1.0)) as a, serving(LLAMA_PAGES, answer(1.0)) as b:
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, "--temperature", temperature, *SHORT)
        bodies = [*a.requests, *b.requests]

    assert ended.code == 0
    for body in bodies:
        assert (body["temperature"], body["repeat_penalty"]) == (float(temperature), 1.0)
        assert {name: body[name] for name in ("top_k", "top_p", "min_p") if name in body} == sent


def test_servers_are_not_compared_without_a_baseline_or_equal_lengths(cli: Cli) -> None:
    assert cli("bench", "--server", "http://localhost:1").code == 2
    with serving(PLAIN_PAGES) as plain:
        assert cli("bench", "--server", plain.url, "--baseline-server", plain.url).code == 2
    assert cli("bench", "--server", "http://localhost:1", "--baseline-server", "http://localhost:1").code == 10
    assert cli("bench", "--server", "http://a", "--baseline-server", "http://b", "-k", "4").code == 2
