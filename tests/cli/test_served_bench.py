"""`specgen bench --server` against servers whose times are known."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from specgen.bench import served, served_doubts
from tests.cli.conftest import Cli
from tests.runtime.servers.fake import LLAMA_PAGES, PLAIN_PAGES, Fake, Reply, as_json, serving, timed

SHORT = ("-r", "2", "--num-prompts", "2", "-n", "3", "--format", "json")


def answered_together(num: int, seconds: float, **drafts: int) -> tuple[Callable[[dict[str, Any]], Reply], list[int]]:
    """Returns what answers requests once so many are waiting, and the numbers that were waiting at each answer."""
    together, waiting, lock = threading.Barrier(num), [], threading.Lock()
    seen: list[int] = []

    def reply(request: dict[str, Any]) -> Reply:
        with lock:
            waiting.append(request)
        together.wait(10)
        with lock:
            seen.append(len(waiting))
        together.wait(10)
        with lock:
            waiting.clear()
        return timed(seconds, **drafts)

    return reply, seen


def test_every_concurrency_is_measured_against_the_baseline_at_the_same(cli: Cli) -> None:
    own, seen = answered_together(2, 4.0, draft_n=2, draft_n_accepted=1)
    base, _ = answered_together(2, 2.0)
    options = (*SHORT, "--concurrency", "2")
    with serving(LLAMA_PAGES, own) as a, serving(LLAMA_PAGES, base) as b:
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, *options)

    baseline, measured = json.loads(ended.out)["results"]
    assert (ended.code, baseline["concurrency"], measured["concurrency"]) == (0, 2, 2)
    assert set(seen) == {2}
    assert measured["summary"]["speedup"] == pytest.approx(0.5)
    assert measured["summary"]["text"] == "same"
    assert measured["summary"]["output_throughput"] > 0


@pytest.mark.thorough
def test_the_speedup_of_one_concurrency_is_not_that_of_another(cli: Cli) -> None:
    """Two servers with drafts; the fake times depend on the load, as on a server whose batches are full."""

    def at(loads: dict[bool, float], fake: Callable[[], Fake]) -> Callable[[dict[str, Any]], Reply]:
        # A fake can't know the load, so it counts: warm-up and measured requests come first at concurrency 1.
        return lambda _: timed(loads[len(fake().requests) in alone])

    alone = {1, 4, 5, 8, 9}  # a warm-up; then two prompts of each of two repeats
    fakes: list[Fake] = []
    with (
        serving(LLAMA_PAGES, at({True: 1.0, False: 4.0}, lambda: fakes[0])) as a,
        serving(LLAMA_PAGES, at({True: 2.0, False: 2.0}, lambda: fakes[1])) as b,
        serving(LLAMA_PAGES, at({True: 2.0, False: 2.0}, lambda: fakes[2])) as c,
    ):
        fakes += [a, b, c]
        servers = ("--server", a.url, "--server", b.url, "--baseline-server", c.url)
        ended = cli("bench", *servers, *SHORT, "--concurrency", "1,2")
        table = cli("bench", *servers, *SHORT[:-2], "--concurrency", "1,2").out.decode()
    found = json.loads(ended.out)

    speedups = {
        (one["draft"], one["concurrency"]): one["summary"]["speedup"] for one in found["results"] if one["draft"]
    }
    assert list(speedups.values()) == pytest.approx([2.0, 1.0, 0.5, 1.0])
    assert found["recommendation"]["options"] == f"--server {a.url}"
    assert found["recommendation"]["setting"]["concurrency"] == 1
    assert {"concurrency", "throughput"} <= set(table.split())


@pytest.mark.parametrize("value", ["0", "1,x", "", "257", "1,,2", "-1", "9"])
def test_a_concurrency_that_cant_be_measured_is_refused(cli: Cli, value: str) -> None:
    servers = ("--server", "http://localhost:1", "--baseline-server", "http://localhost:1")

    assert cli("bench", *servers, *SHORT, f"--concurrency={value}").code == 2


@pytest.mark.parametrize("options", [("--concurrency", "8"), ("--baseline-server", "http://localhost:1")])
def test_options_of_servers_need_a_server(cli: Cli, options: tuple[str, ...]) -> None:
    assert cli("bench", "--quick", *options).code == 2


def test_another_text_is_different_and_check_ends_with_6(cli: Cli) -> None:
    with serving(LLAMA_PAGES, timed(1.0, "abd")) as a, serving(LLAMA_PAGES, timed(1.0)) as b:
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, "--check", *SHORT)

    assert ended.code == 6
    own = json.loads(ended.out)["results"][1]
    assert (own["summary"]["text"], own["differences"][0]["position"]) == ("different", 2)


def test_doubts_are_warnings(cli: Cli) -> None:
    other = {**LLAMA_PAGES, "/v1/models": {"data": [{"id": "other", "owned_by": "llamacpp"}]}, "/props": {}}
    pages = {**other, "/metrics": "llamacpp:requests_processing 1\n"}
    with serving(pages, timed(1.0)) as a, serving(LLAMA_PAGES, timed(1.0)) as b:
        found = json.loads(cli("bench", "--server", a.url, "--baseline-server", b.url, *SHORT).out)

    assert {"different_models", "not_alone"} <= {warning["code"] for warning in found["warnings"]}


def metrics(fake: Fake, drafted: int, accepted: int) -> str:
    """Returns counters that grow by so much with each request so far."""
    counts = {"draft_tokens": drafted, "accepted_tokens": accepted, "drafts": 1}
    return "".join(f"llamacpp:spec_decode_num_{name}_total {n * len(fake.requests)}\n" for name, n in counts.items())


@pytest.mark.parametrize(("counted", "is_doubted"), [((2, 1), False), ((2, 2), True), ((3, 1), True)])
def test_counts_of_answers_are_compared_with_the_servers_counters(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, counted: tuple[int, int], is_doubted: bool
) -> None:
    monkeypatch.setattr(served_doubts, "_LATE_SECONDS", 0.0)
    with (
        serving(LLAMA_PAGES, timed(1.0, draft_n=2, draft_n_accepted=1)) as a,
        serving(LLAMA_PAGES, timed(1.0)) as b,
    ):
        a.pages["/metrics"] = lambda: metrics(a, *counted)
        found = json.loads(cli("bench", "--server", a.url, "--baseline-server", b.url, *SHORT).out)

    assert ("counters_differ" in {warning["code"] for warning in found["warnings"]}) == is_doubted


def test_a_run_that_a_busy_server_refused_is_sent_again_and_doubted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "BUSY_SECONDS", 0.0)
    with (
        serving(LLAMA_PAGES, timed(1.0), as_json({}, 503), timed(1.0)) as a,
        serving(LLAMA_PAGES, timed(1.0)) as b,
    ):
        ended = cli("bench", "--server", a.url, "--baseline-server", b.url, *SHORT)

    found = json.loads(ended.out)
    assert (ended.code, found["results"][1]["summary"]["num_runs"]) == (0, 4)
    assert "retried" in {warning["code"] for warning in found["warnings"]}


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_ctrl_c_ends_the_requests_under_way_and_keeps_finished_runs(cli: Cli, concurrency: str) -> None:
    release, started = threading.Event(), threading.Semaphore(0)
    num_finished = 2 * int(concurrency)  # warm-up and the first prompts

    def stopped(request: dict[str, Any]) -> Reply:
        if len(a.requests) <= num_finished:
            return timed(1.0)
        started.release()
        if started._value == int(concurrency):
            os.kill(os.getpid(), signal.SIGINT)
        return Reply([b": waits\n\n", b"data: {}\n\n"], held=release)

    try:
        with serving(LLAMA_PAGES, stopped) as a, serving(LLAMA_PAGES, timed(2.0)) as b:
            options = ("-r", "3", "--num-prompts", "2", "-n", "3", "--concurrency", concurrency, "--format", "json")
            ended = cli("bench", "--server", a.url, "--baseline-server", b.url, *options)
            release.set()
    finally:
        release.set()

    found = json.loads(ended.out)
    own = [run for one in found["results"] if one["draft"] for run in one["runs"]]
    assert (ended.code, found["is_complete"], len(own)) == (130, False, int(concurrency))


@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.fast("1")
def test_a_server_that_fails_is_left_out_and_the_others_are_measured(cli: Cli, concurrency: str) -> None:
    with (
        serving(LLAMA_PAGES, as_json({}, 500)) as bad,
        serving(LLAMA_PAGES, timed(1.0)) as good,
        serving(LLAMA_PAGES, timed(2.0)) as b,
    ):
        servers = ("--server", bad.url, "--server", good.url, "--baseline-server", b.url)
        ended = cli("bench", *servers, *SHORT, "--concurrency", concurrency)

    found = json.loads(ended.out)
    assert ended.code == 0
    assert [one["summary"]["speedup"] for one in found["results"]] == [None, pytest.approx(2.0)]
    assert [warning["code"] for warning in found["warnings"]].count("failed") == 1


@pytest.mark.parametrize(("temperature", "sent"), [("0", {}), ("0.7", {"top_k": -1, "top_p": 1.0, "min_p": 0.0})])
def test_a_server_does_not_sample_with_its_own_defaults(cli: Cli, temperature: str, sent: dict[str, float]) -> None:
    with serving(LLAMA_PAGES, timed(1.0)) as a, serving(LLAMA_PAGES, timed(1.0)) as b:
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
