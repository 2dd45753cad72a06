"""Requests on a server: several at a time, each answered once, whatever fails meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from specgen.core.batch import BatchAnswer, BatchRequest, BatchResult, BatchTotals
from specgen.core.errors import ServerDeniedError, ServerUnreachableError, SpecgenError
from specgen.runtime.batch.served_batch import ServedBatch, ServedSettings
from tests.runtime.servers.fake import LLAMA_PAGES, Fake, Reply, as_json, opened, serving


def answer(request: dict[str, Any], **fields: Any) -> Reply:
    """Repeats the last message, and counts its characters as tokens."""
    text = request["messages"][-1]["content"]
    document = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": len(text), "prompt_tokens": 1},
        "timings": {"predicted_n": len(text), "predicted_ms": 500, "draft_n": 3, "draft_n_accepted": 2},
        **fields,
    }
    return as_json(document)


def requests(num: int) -> list[BatchRequest]:
    return [BatchRequest(str(i), [{"role": "user", "content": f"text {i}"}]) for i in range(num)]


def batch_on(fake: Fake, **settings: Any) -> ServedBatch:
    settings = {"concurrency": 4, "busy_seconds": (0.0,), **settings}
    return ServedBatch(opened(fake.url), ServedSettings(16, **settings))


def by_id(results: Sequence[BatchResult]) -> dict[str, str]:
    """Returns texts, or codes of errors."""
    assert max(Counter(result.request.id for result in results).values()) == 1
    return {
        result.request.id: result.answer.code
        if isinstance(result.answer, SpecgenError)
        else result.answer.body["choices"][0]["message"]["content"]
        for result in results
    }


def test_as_many_requests_are_under_way_as_asked() -> None:
    together = threading.Barrier(120)

    def waits(request: dict[str, Any]) -> Reply:
        together.wait(2)
        return answer(request)

    with serving(LLAMA_PAGES, waits) as fake:
        found = by_id(list(batch_on(fake, concurrency=120).results(requests(120))))

    assert found == {str(i): f"text {i}" for i in range(120)}


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_every_request_gets_its_own_answer(concurrency: int) -> None:
    with serving(LLAMA_PAGES, answer) as fake:
        found = by_id(list(batch_on(fake, concurrency=concurrency).results(requests(40))))

    assert found == {str(i): f"text {i}" for i in range(40)}


def test_as_many_requests_run_at_a_time_as_allowed() -> None:
    barrier = threading.Barrier(4, timeout=10)

    def wait(request: dict[str, Any]) -> Reply:
        barrier.wait()  # breaks unless four requests are there
        return answer(request)

    with serving(LLAMA_PAGES, wait) as fake:
        assert len(by_id(list(batch_on(fake).results(requests(8))))) == 8


def test_figures_are_the_servers() -> None:
    with serving(LLAMA_PAGES, answer) as fake:
        results = list(batch_on(fake).results(requests(2)))

    answers = [result.answer for result in results]
    assert all(isinstance(one, BatchAnswer) for one in answers)
    assert [(one.num_tokens, one.num_drafted, one.num_accepted, one.seconds) for one in answers] == [(6, 3, 2, 0.5)] * 2
    totals = BatchTotals(2, 0, lambda: 0.0)
    for result in results:
        totals.observe(result)
    assert totals.acceptance_rate == pytest.approx(2 / 3)


def test_fields_of_a_request_are_passed_on_over_those_of_the_command_line() -> None:
    own = BatchRequest(
        "a", [{"role": "user", "content": "x"}], (), {"model": "gpt", "temperature": 0.5, "tools": [1], "stream": True}
    )

    with serving(LLAMA_PAGES, answer) as fake:
        list(batch_on(fake, sampling={"temperature": 0.0, "seed": 3}).results([own]))

    (sent,) = fake.requests
    assert (sent["model"], sent["stream"], sent["max_tokens"]) == ("coder", False, 16)
    assert (sent["temperature"], sent["seed"], sent["tools"]) == (0.5, 3, [1])


def test_turns_are_asked_with_the_replies_before_them() -> None:
    with serving(LLAMA_PAGES, answer) as fake:
        (result,) = batch_on(fake).results([BatchRequest("a", [{"role": "user", "content": "one"}], ("two",))])

    assert [message["content"] for message in fake.requests[-1]["messages"]] == ["one", "one", "two"]
    assert isinstance(result.answer, BatchAnswer)
    assert (result.answer.earlier_replies, result.answer.num_tokens) == (("one",), 6)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (500, {"error": {"message": "no"}}, "server_failed"),
        (400, {"error": {"message": "bad field"}}, "settings"),
        (400, {"error": {"message": "maximum context length"}}, "prompt"),
        (429, {}, "server_busy"),
        (200, {"choices": []}, "server_failed"),
    ],
)
def test_a_request_that_fails_leaves_the_others(status: int, body: dict[str, Any], code: str) -> None:
    def fail_one(request: dict[str, Any]) -> Reply:
        return as_json(body, status) if request["messages"][0]["content"] == "text 3" else answer(request)

    with serving(LLAMA_PAGES, fail_one) as fake:
        found = by_id(list(batch_on(fake).results(requests(6))))

    assert found == {str(i): code if i == 3 else f"text {i}" for i in range(6)}


def test_a_busy_server_is_asked_again() -> None:
    with serving(LLAMA_PAGES, *[as_json({}, 429)] * 5, answer) as fake:
        found = by_id(list(batch_on(fake, concurrency=1, busy_seconds=(0.0, 0.0)).results(requests(2))))

    assert found == {"0": "text 0", "1": "text 1"}


def test_a_refused_key_ends_the_run_and_keeps_what_is_ready() -> None:
    with serving(LLAMA_PAGES, answer, answer, as_json({}, 401)) as fake:
        found: list[BatchResult] = []
        batch = batch_on(fake, concurrency=1)
        with pytest.raises(ServerDeniedError):
            _collect(batch, found)

    assert by_id(found) == {"0": "text 0", "1": "text 1"}
    assert len(fake.requests) == 3


def _collect(batch: ServedBatch, found: list[BatchResult]) -> None:
    for result in batch.results(requests(9)):
        found.append(result)


def test_a_broken_connection_is_one_requests_failure() -> None:
    def cut_one(request: dict[str, Any]) -> Reply:
        if request["messages"][0]["content"] == "text 3":
            raise ConnectionError
        return answer(request)

    with serving(LLAMA_PAGES, cut_one) as fake:
        found = by_id(list(batch_on(fake).results(requests(6))))

    assert found == {str(i): "server_failed" if i == 3 else f"text {i}" for i in range(6)}


def test_a_server_that_is_gone_ends_the_run() -> None:
    with serving(LLAMA_PAGES, answer) as fake:
        batch = batch_on(fake)

    with pytest.raises(ServerUnreachableError):
        list(batch.results(requests(9)))


def test_an_interruption_keeps_what_is_ready_and_waits_for_nothing() -> None:
    held = threading.Event()

    def hold_later_ones(request: dict[str, Any]) -> Reply:
        if request["messages"][0]["content"] not in ("text 0", "text 1"):
            held.wait(10)
        return answer(request)

    with serving(LLAMA_PAGES, hold_later_ones) as fake:
        batch, found = batch_on(fake), []
        for result in batch.results(requests(9)):
            found.append(result)
            if len(found) == 2:
                batch.interrupt()
        held.set()

    assert by_id(found) == {"0": "text 0", "1": "text 1"}
