"""Where requests go, and where a key never goes."""

from __future__ import annotations

import pytest

from specgen.core.errors import SettingsError, SpecgenError
from specgen.runtime.servers.values import ChatRequest, parse_address
from tests.runtime.servers.fake import KEY, PLAIN_PAGES, as_events, as_json, chunk, opened, serving


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8000", "http://host:8000"),
        ("https://host/v1/", "https://host"),
        ("http://127.0.0.1:1/prefix/v1", "http://127.0.0.1:1/prefix"),
        (" http://[::1]:8000/ ", "http://[::1]:8000"),
    ],
)
def test_addresses_with_or_without_v1_are_the_same(url: str, expected: str) -> None:
    assert parse_address(url).url == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8000",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://h?x=1",
        "http://h#a",
        "http://[::1",
        "file:///",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        parse_address(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as failure:
        parse_address("http://me:hunter2@host")

    assert "hunter2" not in f"{failure.value.message} {failure.value.hint}"


def test_a_key_crosses_no_network_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_API_KEY", KEY)

    with pytest.raises(SettingsError) as failure:
        parse_address("http://far.example:8000")

    assert KEY not in f"{failure.value.message} {failure.value.hint}"
    assert parse_address("https://far.example").key == KEY
    assert parse_address("http://localhost:1").key == KEY
    assert parse_address("http://127.1.2.3").key == KEY
    assert parse_address("http://far.example", allows_insecure_key=True).key == KEY
    assert KEY not in repr(parse_address("https://far.example"))


def test_the_key_of_another_service_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert parse_address("https://far.example").key == ""
    assert parse_address("https://far.example", "OPENAI_API_KEY").key == KEY


def test_a_key_that_no_header_can_hold_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_API_KEY", "secret\nHost: x")
    with pytest.raises(SettingsError) as failure:
        parse_address("https://far.example")
    assert "secret" not in failure.value.message


def test_the_key_is_sent_and_a_server_that_repeats_it_does_not_reveal_it() -> None:
    refusal = as_json({"error": {"message": f"wrong key {KEY}"}}, 401)
    with serving(PLAIN_PAGES, refusal) as fake:
        server = opened(fake.url, KEY)
        with pytest.raises(SpecgenError) as failure, server.stream(ChatRequest([], 1)):
            pass

    assert fake.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{failure.value.message} {failure.value.hint} {server!r}"


def test_without_a_key_none_is_sent_even_if_the_environment_has_a_netrc(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(PLAIN_PAGES, as_events(chunk("", "stop"))) as fake:
        opened(fake.url)

    assert all("Authorization" not in headers for headers in fake.headers)


def test_this_machine_is_not_reached_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(PLAIN_PAGES) as fake:
        assert opened(fake.url).facts.model == "any"
