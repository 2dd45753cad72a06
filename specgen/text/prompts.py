"""Reads the prompts of a benchmark, from a file or the bundled set, and encodes them. Does not import torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from specgen.core.errors import PromptError
from specgen.text.chat_template import ChatTemplate, Message, encode_messages

_ROLES = ("system", "user", "assistant")
_SPACE = " \t\r"
_HINT = "give one JSON object per line with prompt, messages or turns; or plain text, one prompt per line"


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """Holds a conversation to answer.

    Args:
        id: Unique name.
        category: Kind of the text to write.
        messages: Messages up to the first reply that is measured.
        later_turns: Further messages of the user; the target answers the earlier ones first, untimed.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    later_turns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Encodes prompts.

    Args:
        is_raw: Continue the text as it is, without a chat template.
        template: Jinja source to use instead of the model's own chat template.
        variables: Further variables for the chat template.
    """

    is_raw: bool = False
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def folds_system(self, tokenizer: Any, messages: Sequence[Message]) -> bool:
        """Returns whether system messages of a conversation become part of user messages."""
        return not self.is_raw and self._chat_template.folds_system(tokenizer, messages)

    @property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate(self.template, self.variables)

    def encode(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation, up to where the answer begins."""
        if self.is_raw:
            return encode_messages(tokenizer, messages)
        return self._chat_template.encode(tokenizer, messages)


def bundled_prompts() -> list[PromptEntry]:
    """Returns the prompts in the package, written for it: one for each category of common work."""
    text = resources.files("specgen.text").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return parse_prompts(text, "the bundled prompts")


def parse_prompts(text: str, source: str) -> list[PromptEntry]:
    """Parses the text of a file: JSON lines if its first line begins with `{`, a JSON array, or one prompt per line.

    A line ends at `\\n` only: `str.splitlines` also splits at characters that JSON strings and texts contain. `source`
    names the file in messages.

    Raises:
        PromptError: A line is invalid, or there are no prompts.
    """
    lines = [(number, line.strip(_SPACE)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{source} contains no prompts", _HINT)
    if lines[0][1].startswith("{"):
        prompts = [_from_json(line, number, f"{source}, line {number}") for number, line in lines]
    elif (entries := _array(text)) is not None:
        prompts = [_from_entry(entry, n, f"{source}, entry {n}") for n, entry in enumerate(entries, 1)]
    else:
        prompts = [PromptEntry(f"line-{number}", "text", (Message("user", line),)) for number, line in lines]
    return _with_unique_ids(prompts)


def _from_json(line: str, number: int, place: str) -> PromptEntry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place} is not JSON: {error}", _HINT) from error
    return _from_entry(entry, number, place)


def _array(text: str) -> list[Any] | None:
    """Returns the entries of a file that is one JSON array; None for any other text, which may begin with `[`."""
    if not text.lstrip().startswith("["):
        return None
    try:
        entries: list[Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entries if entries and all(isinstance(entry, (dict, str)) for entry in entries) else None


def _from_entry(entry: Any, number: int, place: str) -> PromptEntry:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise PromptError(f"{place} is not a JSON object", _HINT)
    name = entry.get("id", entry.get("question_id", number))
    messages, later = _conversation(entry, place)
    return PromptEntry(str(name), str(entry.get("category", "all")), messages, later)


def _conversation(entry: dict[str, Any], place: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Returns the messages and later turns of an entry, in any of its three forms."""
    if isinstance(prompt := entry.get("prompt"), str) and prompt:
        return (Message("user", prompt),), ()
    if isinstance(messages := entry.get("messages"), list) and messages:
        return tuple(parse_message(message, place) for message in messages), ()
    turns = entry.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn for turn in turns):
        return (Message("user", turns[0]),), tuple(turns[1:])
    raise PromptError(f"{place} has no prompt, messages or turns", _HINT)


def parse_message(message: Any, place: str) -> Message:
    """Returns a message from a JSON object with `role` and `content`.

    Raises:
        PromptError: The role is unknown, or the content is not text; `place` says where.
    """
    content = _text(message.get("content")) if isinstance(message, dict) else None
    if content is not None and message.get("role") in _ROLES:
        return Message(message["role"], content)
    raise PromptError(
        f"{place} has an invalid message: role must be one of {', '.join(_ROLES)}, and content must be text", _HINT
    )


def _text(content: Any) -> str | None:
    """Returns the text of a message's content: a string, or a list of parts that are all text, as in OpenAI's API."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else None


def _with_unique_ids(prompts: Sequence[PromptEntry]) -> list[PromptEntry]:
    seen: Counter[str] = Counter()
    unique = []
    for prompt in prompts:
        seen[prompt.id] += 1
        unique.append(prompt if seen[prompt.id] == 1 else replace(prompt, id=f"{prompt.id}-{seen[prompt.id]}"))
    return unique


def choose_evenly(prompts: Sequence[PromptEntry], num_prompts: int) -> list[PromptEntry]:
    """Returns at most `num_prompts` prompts, from as many categories as that allows, in their order."""
    seen: Counter[str] = Counter()
    ranks = []
    for index, prompt in enumerate(prompts):
        ranks.append((seen[prompt.category], index))
        seen[prompt.category] += 1
    return [prompts[index] for index in sorted(index for _, index in sorted(ranks)[:num_prompts])]
