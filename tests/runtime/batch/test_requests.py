"""What a batch reads: prompts of bench, and lines of OpenAI's Batch API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specgen.core.batch import BatchRequest
from specgen.core.errors import PromptError, SettingsError
from specgen.core.settings import SamplingSettings
from specgen.runtime.batch.local_fields import read_settings
from specgen.runtime.batch.requests import parse_requests, text_messages


def line(name: str = "a", url: str | None = "/v1/chat/completions", **body: Any) -> str:
    entry = {"custom_id": name, "method": "POST", "body": {"messages": [{"role": "user", "content": "hi"}], **body}}
    return json.dumps(entry if url is None else {**entry, "url": url})


def test_lines_of_openai_are_read_with_their_fields() -> None:
    first, second = parse_requests(f"\n{line('a', max_tokens=5, stop=None)}\n{line('b', url=None)}\n", "in")

    assert first == BatchRequest("a", [{"role": "user", "content": "hi"}], (), {"max_tokens": 5})
    assert second.id == "b"


def test_prompts_of_bench_are_read_with_their_turns() -> None:
    one, two = parse_requests('{"id": "x", "turns": ["a", "b"]}\n{"prompt": "c"}', "in")

    assert (one.id, one.messages, one.later_turns) == ("x", [{"role": "user", "content": "a"}], ("b",))
    assert (two.id, two.messages) == ("2", [{"role": "user", "content": "c"}])


def test_plain_text_is_a_prompt_for_each_line() -> None:
    assert [request.id for request in parse_requests("a\n\nb\n", "in")] == ["line-1", "line-3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{line('a')}\n{line('a')}",
        f"{line('a')}\nnot json",
        f"{line('a')}\n[1]",
        f'{line("a")}\n{{"prompt": "b"}}',
        line("a", url="/v1/embeddings"),
        line("a", messages=[]),
        line("a", messages="hi"),
        line("a", messages=["hi"]),
        line(""),
        '{"custom_id": 1, "body": {}}',
        '{"custom_id": "a"}',
    ],
)
def test_an_invalid_file_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(PromptError, match=r"in\.jsonl"):
        parse_requests(text, "in.jsonl")


def test_a_message_that_is_not_text_is_refused_on_this_machine_only() -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    (request,) = parse_requests(line("a", messages=[{"role": "user", "content": image}]), "in")

    with pytest.raises(PromptError, match="'a'"):
        text_messages(request)


def settings_of(**fields: Any) -> Any:
    return read_settings(BatchRequest("a", [{"role": "user", "content": "hi"}], (), fields))


def test_fields_of_a_request_set_its_answer() -> None:
    own = settings_of(temperature=1, top_p=0.5, seed=7, max_completion_tokens=9, stop="x", model="gpt", n=1)

    assert own.apply(SamplingSettings(top_k=3)) == SamplingSettings(1, 3, 0.5, seed=7)
    assert (own.max_new_tokens, own.stops) == (9, ("x",))
    assert settings_of(stop=["x", "y"]).stops == ("x", "y")
    assert settings_of(chat_template_kwargs={"a": 1}).template_variables == {"a": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"stream": True},
        {"tools": []},
        {"logit_bias": {"1": 2}},
        {"response_format": {"type": "json_object"}},
        {"max_tokens": 0},
        {"max_tokens": "5"},
        {"max_tokens": True},
        {"temperature": -1},
        {"temperature": "0"},
        {"top_p": 2},
        {"stop": ""},
        {"stop": [1]},
        {"chat_template_kwargs": {"messages": []}},
        {"banana": 1},
    ],
)
def test_a_field_that_cant_be_honoured_is_refused_by_request(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="'a'"):
        settings_of(**fields)
