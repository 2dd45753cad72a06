"""Reasoning blocks of replies."""

from __future__ import annotations

from specgen.text.chat_template import opens_thinking, split_thinking
from tests.toys import toy_tokenizer

TOKENIZER = toy_tokenizer()


def test_reasoning_and_answer_are_separated() -> None:
    assert split_thinking("<think>\na\n</think>\n\nb", starts_inside=False) == ("a", "b")
    assert split_thinking("a</think>b", starts_inside=True) == ("a", "b")
    assert split_thinking("<think>a", starts_inside=False) == ("a", "")


def test_a_reply_that_only_mentions_the_tag_is_all_answer() -> None:
    text = "The tag </think> ends it, <think> begins it."

    assert split_thinking(text, starts_inside=False) == ("", text)


def test_an_open_block_at_the_end_of_the_prompt_is_detected() -> None:
    assert opens_thinking(TOKENIZER, TOKENIZER.encode("assistant\n<think>\n"))
    assert not opens_thinking(TOKENIZER, TOKENIZER.encode("assistant\n"))
