from __future__ import annotations

import json

import pytest

from specgen.bench.prompts import bundled_prompts, choose_evenly, parse_prompts
from specgen.core.errors import PromptError
from specgen.text.chat_template import Message


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
