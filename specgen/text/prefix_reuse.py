"""Keeps the cached tokens of a conversation where it renders to the same text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def keep_cached_ids(tokenizer: Any, cached: Sequence[int], encoded: Sequence[int]) -> list[int]:
    """Returns the text of `encoded`, with the tokens of `cached` as far as both spell the same text.

    The text of a reply may encode to other tokens than the model generated. Keeping the generated ones avoids
    computing them again, and they are what the model itself wrote. Control tokens are never matched with text that
    looks like them: both sides must have the same control tokens.

    Args:
        tokenizer: A transformers tokenizer.
        cached: Ids in the caches.
        encoded: Ids of the conversation as the template renders it now.
    """
    control = set(tokenizer.added_tokens_decoder)
    num_cached, num_encoded = 0, 0
    while num_cached < len(cached) and num_encoded < len(encoded):
        if cached[num_cached] == encoded[num_encoded]:
            num_cached, num_encoded = num_cached + 1, num_encoded + 1
            continue
        step = _next_alignment(tokenizer, cached[num_cached:], encoded[num_encoded:], control)
        if step is None:
            break
        num_cached, num_encoded = num_cached + step[0], num_encoded + step[1]
    return [*cached[:num_cached], *encoded[num_encoded:]]


def _next_alignment(
    tokenizer: Any, left: Sequence[int], right: Sequence[int], control: set[int]
) -> tuple[int, int] | None:
    """Returns how many tokens of each side spell the same text; None if the texts differ."""
    texts, counts, sides = ["", ""], [0, 0], (left, right)
    while True:
        shorter = 0 if len(texts[0]) <= len(texts[1]) else 1
        if counts[shorter] == len(sides[shorter]) or sides[shorter][counts[shorter]] in control:
            return None
        # Token strings, not decoded text: any incomplete character decodes to the same U+FFFD.
        piece = tokenizer.convert_ids_to_tokens(sides[shorter][counts[shorter]])
        if not piece:
            return None
        texts[shorter] += piece
        counts[shorter] += 1
        if texts[0] == texts[1]:
            return counts[0], counts[1]
        if not (texts[0].startswith(texts[1]) or texts[1].startswith(texts[0])):
            return None
