from __future__ import annotations

import json

import pytest

from specgen.core.errors import PromptError
from specgen.text.chat_template import Message
from specgen.text.prompts import PromptFormat, bundled_prompts, choose_evenly, parse_prompts
from tests.toys import toy_tokenizer


def test_the_bundled_prompts_cover_at_least_eight_categories() -> None:
    prompts = bundled_prompts()

    assert len({prompt.category for prompt in prompts}) >= 8
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(len(prompt.messages[0].content) > 60 for prompt in prompts)


def test_json_lines_may_have_a_prompt_messages_or_turns() -> None:
    lines = [
        {"id": "a", "category": "code", "prompt": "one"},
        {"id": "b", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]},
        {"question_id": 81, "category": "writing", "turns": ["first", "second"]},
    ]

    one, two, three = parse_prompts("\n".join(json.dumps(line) for line in lines), "file")

    assert (one.id, one.category, one.messages) == ("a", "code", (Message("user", "one"),))
    assert two.messages == (Message("system", "s"), Message("user", "two"))
    assert (three.id, three.messages, three.later_turns) == ("81", (Message("user", "first"),), ("second",))


def test_plain_text_has_a_prompt_per_line() -> None:
    prompts = parse_prompts("one\n\n  two\n", "file")

    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two"]


@pytest.mark.fault("F121")
@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c", "\x1e"])
def test_a_line_ends_at_a_line_feed_only(character: str) -> None:
    text = f"a{character}b\r\nc\n{character}d\n"
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in (f"a{character}b", "c")]

    plain, from_json = parse_prompts(text, "file"), parse_prompts("\n".join(lines), "file")

    assert [prompt.messages[0].content for prompt in plain] == [f"a{character}b", "c", f"{character}d"]
    # Control characters must be escaped in JSON, and json.dumps does so.
    assert [prompt.messages[0].content for prompt in from_json] == [f"a{character}b", "c"]


@pytest.mark.fault("F121")
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_may_be_one_json_array(indent: int | None) -> None:
    entries = [{"id": "a", "prompt": "one"}, "two", {"messages": [{"role": "user", "content": "three"}]}]

    prompts = parse_prompts(json.dumps(entries, indent=indent), "file")

    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two", "three"]
    with pytest.raises(PromptError, match="file, entry 2"):
        parse_prompts(json.dumps([{"prompt": "a"}, {"text": "b"}], indent=indent), "file")


def test_text_in_brackets_is_no_array() -> None:
    prompts = parse_prompts("[INST] one\n[1, 2]\n", "file")

    assert [prompt.messages[0].content for prompt in prompts] == ["[INST] one", "[1, 2]"]


def test_content_may_be_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    (prompt,) = parse_prompts(json.dumps({"messages": [{"role": "user", "content": parts}]}), "file")

    assert prompt.messages == (Message("user", "one two"),)
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(PromptError, match=r"file.*\bcontent\b"):
        parse_prompts(json.dumps({"messages": [{"role": "user", "content": image}]}), "file")


def test_equal_ids_get_a_number() -> None:
    prompts = parse_prompts('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}', "file")

    assert [prompt.id for prompt in prompts] == ["x", "x-2"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "file"),
        ("{", "file, line 1"),
        ('{"prompt": "a"}\nb', "file, line 2"),
        ('{"text": "a"}', "file, line 1"),
        ('{"turns": [1]}', "file, line 1"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "file, line 1"),
    ],
)
def test_an_invalid_prompt_is_reported_with_its_line(text: str, place: str) -> None:
    with pytest.raises(PromptError, match=place):
        parse_prompts(text, "file")


def test_few_prompts_are_chosen_of_many_categories() -> None:
    lines = [{"id": f"{c}{i}", "category": c, "prompt": "x"} for c in "abc" for i in range(3)]
    prompts = parse_prompts("\n".join(json.dumps(line) for line in lines), "file")

    assert [prompt.id for prompt in choose_evenly(prompts, 4)] == ["a0", "a1", "b0", "c0"]


@pytest.mark.fault("F98")
def test_prompts_get_the_variables_of_the_template() -> None:
    tokenizer = toy_tokenizer()
    template = "{{ messages[0].content }}{% if enable_thinking is defined %} {{ enable_thinking }}{% endif %}"
    messages = [Message("user", "hi")]

    encoded = PromptFormat(template=template, variables={"enable_thinking": False}).encode(tokenizer, messages)

    assert tokenizer.decode(encoded) == "hi False"


@pytest.mark.fault("F97")
def test_a_system_message_is_folded_into_a_prompt() -> None:
    tokenizer = toy_tokenizer()
    format_ = PromptFormat(template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    messages = [Message("system", "Be brief."), Message("user", "hi")]

    assert format_.folds_system(tokenizer, messages)
    assert tokenizer.decode(format_.encode(tokenizer, messages)) == "Be brief.\n\nhi"
    assert not PromptFormat(is_raw=True).folds_system(tokenizer, messages)


@pytest.mark.fault("F165")
def test_json_that_is_nested_too_deeply_is_a_prompt_error() -> None:
    with pytest.raises(PromptError, match="line 2"):
        parse_prompts('{"prompt": "a"}\n{"prompt": "b", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "file")
