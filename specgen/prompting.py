"""Messages in, prompt ids out: chat templates, and user text that can't pose as control tokens."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specgen.errors import LoadError, PromptError, SettingsError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a raw prompt (`--chat-template none`): special tokens in it keep their meaning.

    Raises:
        PromptError: There is nothing to start from.
    """
    ids: list[int] = tokenizer.encode(text)
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise PromptError("the prompt is empty: nothing to generate from", "give a prompt of at least one character")
    return ids


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a conversation, ready for the assistant's turn.

    Text of a message never becomes a control token: if one contains such a token's string, the conversation is
    rendered with random stand-ins for the contents, and contents are encoded on their own as plain text.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The conversation so far.
        template: Jinja source to use instead of the tokenizer's own chat template.
        template_options: Further variables for the template.

    Raises:
        SettingsError: The tokenizer has no chat template and none was given.
        PromptError: The template alters contents that hold control tokens, so they can't be told apart.
        LoadError: The template is broken or refuses the conversation.
    """
    if template is None and not tokenizer.chat_template:
        raise SettingsError("the model has no chat template", "use --chat-template none, or --chat-template FILE")
    options = {**(template_options or {}), "chat_template": template}
    # Single characters can't be broken up and carry no control meaning in any known template.
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if len(token.content) > 1]
    if not any(string in message.content for message in messages for string in control):
        return _plain_ids(tokenizer, _render(tokenizer, messages, options))
    return _guarded_ids(tokenizer, messages, options, control)


def _guarded_ids(
    tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any], control: Sequence[str]
) -> list[int]:
    stand_ins = [secrets.token_hex(16) for _ in messages]
    masked = [Message(message.role, stand_in) for message, stand_in in zip(messages, stand_ins, strict=True)]
    rest = _render(tokenizer, masked, options)
    ids: list[int] = []
    for message, stand_in in zip(messages, stand_ins, strict=True):
        if rest.count(stand_in) != 1:
            raise PromptError(
                f"the chat template repeats or drops a {message.role} message that contains control tokens",
                "remove the control tokens from the message, or use --chat-template none",
            )
        before, rest = rest.split(stand_in)
        ids += _plain_ids(tokenizer, before)
        for piece in _broken_up(message.content, control):
            ids += _plain_ids(tokenizer, piece)
    return ids + _plain_ids(tokenizer, rest)


def _broken_up(text: str, control: Sequence[str]) -> list[str]:
    """Split `text` so that no piece contains a control string: behind the first character of each occurrence.

    `split_special_tokens=True` is not enough: it leaves added tokens that aren't special (`<tool_call>`) whole.
    """
    longest_first = sorted(control, key=len, reverse=True)
    occurrence = re.compile("|".join(re.escape(string) for string in longest_first))
    pieces = []
    while found := occurrence.search(text):
        pieces.append(text[: found.start() + 1])
        text = text[found.start() + 1 :]
    return [*pieces, text]


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _render(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # Jinja, and the template itself, can raise anything
        raise LoadError(
            f"the chat template failed: {error}", "use --chat-template none, or give another with --chat-template FILE"
        ) from error
    return text
