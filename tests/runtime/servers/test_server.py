"""Asking a server: streams, errors, retries and caps, over real sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import (
    ModelNotFoundError,
    PromptError,
    ServerBusyError,
    ServerDeniedError,
    ServerError,
    ServerUnreachableError,
    SettingsError,
    SpecgenError,
)
from specgen.runtime.servers.server import Server, open_server
from specgen.runtime.servers.values import Address, ChatRequest, Delta
from tests.profiles import num_examples
from tests.runtime.servers.fake import (
    LLAMA_PAGES,
    LLAMA_STREAM,
    PLAIN_PAGES,
    VLLM_PAGES,
    VLLM_STREAM,
    Reply,
    as_events,
    as_json,
    chunk,
    opened,
    recorded,
    serving,
)

REQUEST = ChatRequest([{"role": "user", "content": "Hi"}], 8)


def deltas(server: Server, request: ChatRequest = REQUEST) -> list[Delta]:
    with server.stream(request) as (_, stream):
        return list(stream)


def text_of(found: list[Delta]) -> str:
    return "".join(delta.text for delta in found)


def test_a_recorded_stream_of_llama_server_gives_its_text_and_counts() -> None:
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake:
        server = opened(fake.url)
        found = deltas(server)

    assert server.facts.name == "llama-server b11549"
    assert (server.facts.window, server.facts.root) == (4096, "/models/coder.gguf")
    assert text_of(found).startswith("Certainly! Below is a simple Python function")
    assert fake.requests[0]["timings_per_token"] is True
    acceptance = found[-1].figures.acceptance
    assert acceptance is not None
    assert (acceptance.num_drafted, acceptance.num_accepted, found[-1].figures.num_tokens) == (19, 16, 24)
    assert found[-1].figures.decode_seconds == pytest.approx(10.190594)


def test_a_recorded_stream_of_vllm_gives_every_round() -> None:
    with serving(VLLM_PAGES, recorded(VLLM_STREAM)) as fake:
        server = opened(fake.url)
        found = deltas(server)

    assert server.facts.name == "vLLM 0.32.0"
    acceptance = found[-1].figures.acceptance
    assert acceptance is not None
    assert acceptance.steps == ((3, 3), (3, 3), (3, 3))
    assert (acceptance.num_rounds, acceptance.num_rejected) == (3, 0)
    assert sum(delta.num_new_tokens or 0 for delta in found) == found[-1].figures.num_tokens == 15
    assert text_of(found) == "One two three four, one two three four, one two three four"


@settings(max_examples=num_examples(25), deadline=None)
@given(size=st.integers(1, 40))
def test_bytes_may_be_split_anywhere(size: int) -> None:
    data = b": ping\n\n" + as_events(chunk("Ä€"), chunk("𝄞", "stop")).parts[0] + b":\r\n\r\n"
    data += b"".join(as_events(chunk("𝄞", "stop")).parts)
    reply = Reply([data[at : at + size] for at in range(0, len(data), size)])
    with serving(PLAIN_PAGES, reply) as fake:
        assert text_of(deltas(opened(fake.url))) == "Ä€𝄞"


def test_a_busy_server_is_asked_again() -> None:
    busy = as_json({"error": {"message": "loading"}}, 503)
    waits: list[float] = []
    with serving(PLAIN_PAGES, as_json({}, 429, Retry_After="7"), busy, as_events(chunk("ok", "stop"))) as fake:
        server = opened(fake.url, sleep=waits.append)
        assert text_of(deltas(server)) == "ok"

    assert waits == [7.0, 1.0]
    assert server.client.num_retried == 2


def test_nothing_is_sent_again_after_the_first_byte() -> None:
    with serving(PLAIN_PAGES, Reply(as_events(chunk("half")).parts[:1], is_cut=True)) as fake:
        server, found = opened(fake.url), []
        with server.stream(REQUEST) as (_, stream), pytest.raises(ServerError) as failure:
            found.extend(stream)
        assert len(fake.requests) == 1

    assert failure.value.code == "server_failed"


def test_text_before_a_broken_connection_is_kept() -> None:
    reply = Reply(as_events(chunk("half")).parts[:1], is_cut=True)
    with serving(PLAIN_PAGES, reply) as fake, opened(fake.url).stream(REQUEST) as (_, stream):
        assert next(stream).text == "half"
        with pytest.raises(ServerError):
            next(stream)


ROWS = [
    (as_json({"error": {"message": "no"}}, 401), ServerDeniedError, "server_denied", 10),
    (as_json({"error": "no"}, 403), ServerDeniedError, "server_denied", 10),
    (as_json({}, 429), ServerBusyError, "server_busy", 10),
    (as_json({}, 503, Retry_After="3600"), ServerBusyError, "server_busy", 10),
    (as_json({"error": {"message": "boom"}}, 500), ServerError, "server_failed", 10),
    (Reply([b"<html>"], 502, {}), ServerError, "server_failed", 10),
    (as_json({"error": {"message": "exceeds the available context size"}}, 400), PromptError, "prompt", 2),
    (as_json({"error": {"message": "min_p is not supported"}}, 400), SettingsError, "settings", 2),
    (as_json({"detail": "wrong"}, 422), SettingsError, "settings", 2),
    (Reply([b""], 302, {"Location": "http://elsewhere/"}), ServerError, "server_failed", 10),
    (as_json({"no": "stream"}), ServerError, "server_failed", 10),
    (as_events(chunk("a"), done=False), ServerError, "server_failed", 10),
    (as_events(chunk("a")), ServerError, "server_failed", 10),
    (as_events({"error": {"message": "died"}}), ServerError, "server_failed", 10),
    (Reply([b"data: [1, 2]\n\n"]), ServerError, "server_failed", 10),
    (Reply([b"data: {broken\n\n"]), ServerError, "server_failed", 10),
    (Reply([b"data: " + b"[" * 100_000 + b"\n\n"]), ServerError, "server_failed", 10),
    (Reply([b"data: " + b"x" * 10_000_000 + b"\n\n"]), ServerError, "server_failed", 10),
]


@pytest.mark.parametrize(("reply", "error", "code", "exit_code"), ROWS)
def test_each_failure_has_its_code(reply: Reply, error: type[SpecgenError], code: str, exit_code: int) -> None:
    with serving(PLAIN_PAGES, reply) as fake, pytest.raises(error) as failure:
        deltas(opened(fake.url))

    assert (failure.value.code, failure.value.exit_code) == (code, exit_code)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with serving(PLAIN_PAGES) as fake:
        url = fake.url

    with pytest.raises(ServerUnreachableError) as failure:
        opened(url)

    assert (failure.value.code, failure.value.exit_code) == ("server_unreachable", 10)


def test_silence_before_the_first_event_is_unreachable(held: Reply) -> None:
    with serving(PLAIN_PAGES, held) as fake, pytest.raises(ServerUnreachableError):
        deltas(opened(fake.url, timeout_seconds=0.2))


def test_silence_between_events_is_a_failure_that_keeps_the_text(held: Reply) -> None:
    reply = Reply([*as_events(chunk("a"), done=False).parts, *held.parts], held=held.held)
    with serving(PLAIN_PAGES, reply) as fake, opened(fake.url, timeout_seconds=0.2).stream(REQUEST) as (_, stream):
        assert next(stream).text == "a"
        with pytest.raises(ServerError) as failure:
            next(stream)

    assert failure.value.code == "server_failed"


def test_a_connection_that_fails_is_tried_three_times_in_all() -> None:
    waits: list[float] = []
    with serving(PLAIN_PAGES) as fake:
        url = fake.url
    with pytest.raises(ServerUnreachableError):
        opened(url, sleep=waits.append)

    assert waits == [0.5, 1.0]


@pytest.fixture
def held() -> Iterator[Reply]:
    import threading

    release = threading.Event()
    yield Reply([b"data: {}\n\n"], held=release)
    release.set()


def test_closing_the_stream_ends_a_read_that_waits(held: Reply) -> None:
    import threading

    parts = [*as_events(chunk("a"), done=False).parts, *held.parts]
    reply = Reply(parts, held=held.held)
    with serving(PLAIN_PAGES, reply) as fake, opened(fake.url).stream(REQUEST) as (events, stream):
        assert next(stream).text == "a"
        threading.Timer(0.05, events.close).start()
        assert list(stream) == []


def test_an_answer_longer_than_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.runtime.servers.event_stream.MAX_ANSWER_BYTES", 500)
    with serving(PLAIN_PAGES, as_events(*[chunk("x" * 100)] * 9)) as fake, pytest.raises(ServerError):
        deltas(opened(fake.url))


def test_a_model_is_chosen_by_name_or_is_the_only_one() -> None:
    two = {"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}
    with serving(two) as fake:
        assert open_server(Address(fake.url), "b").facts.model == "b"
        with pytest.raises(SettingsError, match="2 models") as several:
            opened(fake.url)
        with pytest.raises(ModelNotFoundError) as missing:
            open_server(Address(fake.url), "c")

    assert several.value.exit_code == 2
    assert several.value.hint is not None
    assert "a, b" in several.value.hint
    assert missing.value.exit_code == 3


def test_what_is_no_server_is_refused() -> None:
    with serving({"/v1/models": "<html>"}) as fake, pytest.raises(ServerError):
        opened(fake.url)


def test_a_setting_that_the_engine_does_not_know_is_refused() -> None:
    with serving(PLAIN_PAGES, as_events(chunk("", "stop"))) as fake:
        server = opened(fake.url)
        for request in (ChatRequest([], 1, {"min_p": 0.1}), ChatRequest([], 1, ignore_eos=True)):
            with pytest.raises(SettingsError, match=re.compile("--min-p|--ignore-eos")):
                deltas(server, request)
        assert fake.requests == []


def test_a_whole_answer_is_read_like_a_stream() -> None:
    figures = {"num_draft_tokens": 6, "num_accepted_draft_tokens": 2, "num_spec_steps": 2}
    document = {**chunk(), "usage": {"completion_tokens": 5}, "metrics": {"speculative_decoding": figures}}
    with serving(VLLM_PAGES, as_json(document)) as fake:
        server = opened(fake.url)
        found, figures = server.complete(server.body(REQUEST, stream=False))

    assert found == document
    assert figures.acceptance is not None
    assert (figures.num_tokens, figures.acceptance.num_accepted) == (5, 2)
    assert "stream_options" not in fake.requests[0]
