"""Separates a reply's reasoning (`<think>...</think>`) from its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_OPEN, _CLOSE = "<think>", "</think>"


def split_thinking(text: str, *, starts_inside: bool) -> tuple[str, str]:
    """Splits a reply into its reasoning and its answer.

    Args:
        text: The reply.
        starts_inside: The template opened the block already, at the end of the prompt.

    Returns:
        Reasoning and answer. A reply without a block is all answer; one that ends inside the block is all reasoning.
    """
    stripped = text.lstrip()
    if not starts_inside and not stripped.startswith(_OPEN):
        return "", text
    thinking, mark, answer = stripped.removeprefix(_OPEN).partition(_CLOSE)
    return thinking.strip(), answer.lstrip() if mark else ""


def opens_thinking(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Returns whether a prompt ends with an open reasoning block."""
    end: str = tokenizer.decode(list(prompt_ids[-8:]), skip_special_tokens=False)
    return end.rstrip().endswith(_OPEN)
