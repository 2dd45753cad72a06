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


def test_json_lines_may_hold_a_prompt_messages_or_turns() -> None:
    lines = [
        {"id": "a", "category": "code", "prompt": "one"},
        {"id": "b", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]},
        {"question_id": 81, "category": "writing", "turns": ["first", "second"]},
    ]

    one, two, three = parse_prompts("\n".join(json.dumps(line) for line in lines), "file")

    assert (one.id, one.category, one.messages) == ("a", "code", (Message("user", "one"),))
    assert two.messages == (Message("system", "s"), Message("user", "two"))
    assert (three.id, three.messages, three.later_turns) == ("81", (Message("user", "first"),), ("second",))


def test_plain_text_holds_a_prompt_per_line() -> None:
    prompts = parse_prompts("one\n\n  two\n", "file")

    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two"]


def test_equal_names_are_told_apart() -> None:
    prompts = parse_prompts('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}', "file")

    assert [prompt.id for prompt in prompts] == ["x", "x-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a"}\nb', "line 2 is not JSON"),
        ('{"text": "a"}', "line 1 has no prompt, messages or turns"),
        ('{"turns": [1]}', "has no prompt"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "a message needs role"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_prompts(text, "file")


def test_few_prompts_are_chosen_of_many_categories() -> None:
    lines = [{"id": f"{c}{i}", "category": c, "prompt": "x"} for c in "abc" for i in range(3)]
    prompts = parse_prompts("\n".join(json.dumps(line) for line in lines), "file")

    assert [prompt.id for prompt in choose_evenly(prompts, 4)] == ["a0", "a1", "b0", "c0"]
