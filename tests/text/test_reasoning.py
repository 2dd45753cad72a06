"""Checks that reasoning is separated from the answer, whether its marks are text or special tokens."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from specgen.text.reasoning import MARKS, opened_mark, split_reasoning
from tests.toys import toy_tokenizer

HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")


def with_special(*strings: str) -> Any:
    toy_tokenizer.cache_clear()
    tokenizer = toy_tokenizer()
    toy_tokenizer.cache_clear()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken(string, special=True) for string in strings])
    return tokenizer


def split(tokenizer: Any, reply: str, prompt: str = "<|im_start|>assistant\n", stop: str | None = None) -> Any:
    ids = tokenizer.encode(reply)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return split_reasoning(tokenizer, ids, text.partition(stop)[0] if stop else text, tokenizer.encode(prompt))


@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize(("open_mark", "close_mark"), MARKS)
@pytest.mark.fault("F94")
def test_reasoning_and_answer_are_separated(open_mark: str, close_mark: str, is_special: bool) -> None:
    tokenizer = with_special(open_mark, close_mark) if is_special else toy_tokenizer()

    assert split(tokenizer, f"{open_mark}\na\n{close_mark}\n\nb") == ("a", "b")
    assert split(tokenizer, f"a{close_mark}b", f"assistant\n{open_mark}\n") == ("a", "b")
    assert split(tokenizer, f"{open_mark}a") == ("a", "")
    assert split(tokenizer, f"{open_mark}a{close_mark}b stop c", stop="stop") == ("a", "b ")
    assert split(tokenizer, "just b") == ("", "just b")


def test_a_reply_that_only_mentions_the_tag_is_all_answer() -> None:
    text = "The tag </think> ends it, <think> begins it."

    assert split(toy_tokenizer(), text) == ("", text)


def test_an_open_block_at_the_end_of_the_prompt_is_detected() -> None:
    tokenizer = toy_tokenizer()

    assert opened_mark(tokenizer, tokenizer.encode("assistant\n<think>\n")) == MARKS[0]
    assert opened_mark(tokenizer, tokenizer.encode("assistant\n")) is None


@pytest.mark.fault("F94")
def test_the_final_channel_is_the_answer() -> None:
    tokenizer = with_special(*HARMONY)
    analysis = "<|channel|>analysis<|message|>let me see<|end|>"

    assert split(tokenizer, f"{analysis}<|start|>assistant<|channel|>final<|message|>four<|return|>") == (
        "let me see",
        "four",
    )
    assert split(tokenizer, "<|channel|>final<|message|>four") == ("", "four")
    assert split(tokenizer, analysis) == ("let me see", "")
