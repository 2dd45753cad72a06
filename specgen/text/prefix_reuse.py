"""Keeps the tokens that the caches hold where a conversation renders to the same text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def keep_cached_ids(tokenizer: Any, cached: Sequence[int], encoded: Sequence[int]) -> list[int]:
    """The text of `encoded`, in the tokens of `cached` for as long as both hold the same text.

    A reply read back from its text may come out in other tokens than the model chose. Keeping the model's own spares
    reading it again, and is what the model saw itself write. Control tokens are never taken for the text that looks
    like them: both sides must hold the very same ones.

    Args:
        tokenizer: A transformers tokenizer.
        cached: Ids the caches hold.
        encoded: Ids of the conversation as the template renders it now.
    """
    control = set(tokenizer.added_tokens_decoder)
    at, to = 0, 0
    while at < len(cached) and to < len(encoded):
        if cached[at] == encoded[to]:
            at, to = at + 1, to + 1
            continue
        both = _next_meeting(tokenizer, cached[at:], encoded[to:], control)
        if both is None:
            break
        at, to = at + both[0], to + both[1]
    return [*cached[:at], *encoded[to:]]


def _next_meeting(
    tokenizer: Any, left: Sequence[int], right: Sequence[int], control: set[int]
) -> tuple[int, int] | None:
    """How many tokens of each side spell the same text; None if they part for good."""
    spelled, counts, sides = ["", ""], [0, 0], (left, right)
    while True:
        shorter = 0 if len(spelled[0]) <= len(spelled[1]) else 1
        if counts[shorter] == len(sides[shorter]) or sides[shorter][counts[shorter]] in control:
            return None
        # Token strings and not decoded text: half characters decode to the same U+FFFD, whatever their bytes.
        piece = tokenizer.convert_ids_to_tokens(sides[shorter][counts[shorter]])
        if not piece:
            return None
        spelled[shorter] += piece
        counts[shorter] += 1
        if spelled[0] == spelled[1]:
            return counts[0], counts[1]
        if not (spelled[0].startswith(spelled[1]) or spelled[1].startswith(spelled[0])):
            return None
