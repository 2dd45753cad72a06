"""Small rules of a conversation's turns: pure functions over text and ids. Knows no model and no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_OPEN, _CLOSE = "<think>", "</think>"


def split_thinking(text: str, *, starts_inside: bool) -> tuple[str, str]:
    """A reply's reasoning block and what comes after it.

    Args:
        text: The reply.
        starts_inside: The template opened the block already, at the end of the prompt.

    Returns:
        Thinking and answer. A reply without a block is all answer; one that ends inside it is all thinking.
    """
    stripped = text.lstrip()
    if not starts_inside and not stripped.startswith(_OPEN):
        return "", text
    thinking, mark, answer = stripped.removeprefix(_OPEN).partition(_CLOSE)
    return thinking.strip(), answer.lstrip() if mark else ""


def opens_thinking(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with an open reasoning block."""
    end: str = tokenizer.decode(list(prompt_ids[-8:]), skip_special_tokens=False)
    return end.rstrip().endswith(_OPEN)
