"""Separates a reply's reasoning from its answer.

Where the marks are special tokens, the text omits them: they are found by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
)
"""How reasoning begins and ends: DeepSeek, Qwen and others; Magistral; Seed-OSS; Command A; Kimi; Gemma 4."""
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
"""Harmony (gpt-oss): a reply has channels, of which `final` is the answer."""
_NUM_TAIL = 32
"""Tokens at the end of a prompt that may hold an opening mark and white space."""


def split_reasoning(tokenizer: Any, ids: Sequence[int], text: str, prompt_ids: Sequence[int]) -> tuple[str, str]:
    """Splits a reply into its reasoning and its answer.

    Args:
        tokenizer: The target's.
        ids: The reply.
        text: The text of the reply, without special tokens, up to a stop string.
        prompt_ids: The prompt: its template may have opened the block.

    Returns:
        Reasoning and answer. A reply without a block is all answer; one that ends inside the block is all reasoning.
    """
    visible: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    opened = opened_mark(tokenizer, prompt_ids)
    if opened is None and _CHANNEL in visible and _CHANNEL not in text:
        return _split_channels(tokenizer, ids, text)
    start = visible.lstrip()
    marks = opened or next((pair for pair in MARKS if start.startswith(pair[0])), None)
    if marks is None:
        return "", text
    open_mark, close_mark = marks
    if close_mark in text or close_mark not in visible:
        thinking, closed, answer = text.lstrip().removeprefix(open_mark).partition(close_mark)
        return thinking.strip(), answer.lstrip() if closed else ""
    at = next(n for n in range(1, len(ids) + 1) if close_mark in tokenizer.decode(list(ids[:n])))
    shown = tokenizer.decode(list(ids[:at]), skip_special_tokens=True)
    return shown.strip().removeprefix(open_mark).strip(), _after(shown, text).lstrip()


def opened_mark(tokenizer: Any, prompt_ids: Sequence[int]) -> tuple[str, str] | None:
    """Returns the marks of the reasoning block that a prompt ends in, or None."""
    end: str = tokenizer.decode(list(prompt_ids[-_NUM_TAIL:]), skip_special_tokens=False).rstrip()
    return next((pair for pair in MARKS if end.endswith(pair[0])), None)


def _split_channels(tokenizer: Any, ids: Sequence[int], text: str) -> tuple[str, str]:
    """Splits a reply in harmony's format. A body goes up to the next special token; its channel is named before it."""
    thinking: list[str] = []
    answer_at: int | None = None
    names: list[int] | None = None
    body: list[int] | None = None
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    for position, token_id in enumerate(ids):
        string = tokenizer.convert_ids_to_tokens(token_id)
        if string == _CHANNEL:
            names, body = [], None
        elif string == _MESSAGE and names is not None:
            is_final = tokenizer.decode(names).strip().startswith("final")
            if is_final:
                answer_at = position + 1
                break
            body, names = [], None
            thinking.append("")
        elif token_id in special:
            body = None
        elif names is not None:
            names.append(token_id)
        elif body is not None:
            body.append(token_id)
            thinking[-1] = tokenizer.decode(body)
    shown = tokenizer.decode(list(ids[:answer_at]), skip_special_tokens=True)
    answer = "" if answer_at is None else _after(shown, text)
    return "\n\n".join(part.strip() for part in thinking if part.strip()), answer.strip("\n")


def _after(shown: str, text: str) -> str:
    """Returns what follows `shown` in the text of a reply; a stop string may have cut it."""
    return text[len(shown) :] if text.startswith(shown) else text.removeprefix(shown.lstrip())
