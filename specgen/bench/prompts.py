"""What to run a benchmark on: a file or the bundled set in, prompts as conversations out. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from specgen.core.errors import PromptError
from specgen.text.chat_template import Message

_ROLES = ("system", "user", "assistant")
_WANTED = "give one JSON object per line with prompt, messages or turns; or plain text, a prompt per line"


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A conversation to answer.

    Args:
        id: Unique name.
        category: What kind of text it asks for.
        messages: Up to the user's turn.
        later_turns: Further turns of the user; the target answers the earlier ones first, untimed.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    later_turns: tuple[str, ...] = ()


def bundled_prompts() -> list[BenchPrompt]:
    """The prompts that come with the program, written for it: one per category, the kinds of work people do."""
    text = resources.files("specgen.bench").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return parse_prompts(text, "the bundled prompts")


def parse_prompts(text: str, source: str) -> list[BenchPrompt]:
    """Prompts from the text of a file: JSON lines if its first line begins with `{`, else a prompt per line.

    Args:
        text: The file's text.
        source: Its name, for messages.

    Raises:
        PromptError: A line is no prompt, or there is none.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{source} holds no prompt", _WANTED)
    if lines[0][1].startswith("{"):
        prompts = [_from_json(line, number, f"{source}, line {number}") for number, line in lines]
    else:
        prompts = [BenchPrompt(f"line-{number}", "text", (Message("user", line),)) for number, line in lines]
    return _with_unique_ids(prompts)


def _from_json(line: str, number: int, place: str) -> BenchPrompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{place} is not JSON: {error}", _WANTED) from error
    if not isinstance(entry, dict):
        raise PromptError(f"{place} is no JSON object", _WANTED)
    name = entry.get("id", entry.get("question_id", number))
    messages, later = _conversation(entry, place)
    return BenchPrompt(str(name), str(entry.get("category", "all")), messages, later)


def _conversation(entry: dict[str, Any], place: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The prompt of an entry, in any of its three forms."""
    if isinstance(prompt := entry.get("prompt"), str) and prompt:
        return (Message("user", prompt),), ()
    if isinstance(messages := entry.get("messages"), list) and messages:
        return tuple(_message(message, place) for message in messages), ()
    turns = entry.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn for turn in turns):
        return (Message("user", turns[0]),), tuple(turns[1:])
    raise PromptError(f"{place} has no prompt, messages or turns", _WANTED)


def _message(message: Any, place: str) -> Message:
    if isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str):
        return Message(message["role"], message["content"])
    raise PromptError(f"{place}: a message needs role ({', '.join(_ROLES)}) and content, both text", _WANTED)


def _with_unique_ids(prompts: Sequence[BenchPrompt]) -> list[BenchPrompt]:
    seen: dict[str, int] = {}
    unique = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, 0) + 1
        name = prompt.id if seen[prompt.id] == 1 else f"{prompt.id}-{seen[prompt.id]}"
        unique.append(BenchPrompt(name, prompt.category, prompt.messages, prompt.later_turns))
    return unique


def choose_evenly(prompts: Sequence[BenchPrompt], num_prompts: int) -> list[BenchPrompt]:
    """At most so many prompts, of as many categories as that allows, in their order."""
    order = sorted(range(len(prompts)), key=lambda i: _rank_in_category(prompts, i))
    return [prompts[i] for i in sorted(order[:num_prompts])]


def _rank_in_category(prompts: Sequence[BenchPrompt], index: int) -> tuple[int, int]:
    return sum(p.category == prompts[index].category for p in prompts[:index]), index
