"""Messages in, prompt ids out: chat templates, and user text that can't pose as control tokens."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specgen.core.errors import LoadError, PromptError, SettingsError
from specgen.text.template_sandbox import max_rendered_chars, template_limits


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
        PromptError: The template renders to nothing; or contents hold control tokens, and the template or the
            tokenizer alters them, so that they can't be told apart.
        LoadError: The template is broken or refuses the conversation.
    """
    if template is None and not tokenizer.chat_template:
        raise SettingsError("the model has no chat template", "use --chat-template none, or --chat-template FILE")
    options = {**(template_options or {}), "chat_template": template}
    # Single characters can't be broken up and carry no control meaning in any known template.
    added = tokenizer.added_tokens_decoder.items()
    control = {token.content: token_id for token_id, token in added if len(token.content) > 1}
    if any(_holds_control(tokenizer, message.content, control) for message in messages):
        ids = _guarded_ids(tokenizer, messages, options, control)
    else:
        ids = _plain_ids(tokenizer, _render(tokenizer, messages, options))
    if not ids:
        raise PromptError("the chat template renders to nothing: nothing to generate from", "use another template")
    return ids


def _holds_control(tokenizer: Any, text: str, control: Mapping[str, int]) -> bool:
    """Whether a control token is in the text, or would be found there once the tokenizer has normalized it."""
    return any(string in text for string in control) or _becomes_control(
        tokenizer, _plain_ids(tokenizer, text), control
    )


def _becomes_control(tokenizer: Any, ids: Sequence[int], control: Mapping[str, int]) -> bool:
    # The token for unknown text is an added one in some tokenizers, and any text may hold it.
    return not (set(control.values()) - {tokenizer.unk_token_id}).isdisjoint(ids)


def _guarded_ids(
    tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any], control: Mapping[str, int]
) -> list[int]:
    # Only these get a stand-in: templates may well alter the others, as they do with earlier replies.
    holding = [index for index, m in enumerate(messages) if _holds_control(tokenizer, m.content, control)]
    stand_ins = {index: secrets.token_hex(16) for index in holding}
    masked = [Message(m.role, stand_ins.get(index, m.content)) for index, m in enumerate(messages)]
    rest = _render(tokenizer, masked, options)
    ids: list[int] = []
    for index, stand_in in stand_ins.items():
        message = messages[index]
        if rest.count(stand_in) != 1:
            raise PromptError(
                f"the chat template repeats or drops a {message.role} message that contains control tokens",
                "remove the control tokens from the message, or use --chat-template none",
            )
        before, rest = rest.split(stand_in)
        ids += _plain_ids(tokenizer, before)
        for piece in _broken_up(message.content, control):
            new = _plain_ids(tokenizer, piece)
            if _becomes_control(tokenizer, new, control):
                raise PromptError(
                    f"the tokenizer normalizes text of a {message.role} message to control tokens",
                    "change the text, or use --chat-template none",
                )
            ids += new
    return ids + _plain_ids(tokenizer, rest)


def _broken_up(text: str, control: Iterable[str]) -> list[str]:
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
    hint = "use --chat-template none, or give another with --chat-template FILE"
    try:
        with template_limits():
            text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except MemoryError as error:
        raise LoadError("the chat template failed: it took too much memory", hint) from error
    except Exception as error:  # Jinja, and the template itself, can raise anything
        raise LoadError(f"the chat template failed: {error}", hint) from error
    if len(text) > max_rendered_chars(sum(len(message.content) for message in messages)):
        raise LoadError(f"the chat template failed: it made {len(text)} characters", hint)
    return text


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """Which chat template, and its variables. `source` None is the model's own."""

    source: str | None
    options: Mapping[str, Any]

    def encode(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the model's answer begins.

        Raises:
            LoadError: The template refuses it, or takes too long.
            PromptError: Nothing comes out, or text of the user would become control tokens.
        """
        return encode_messages(tokenizer, messages, template=self.source, template_options=self.options)

    def check(self, tokenizer: Any, name: str) -> None:
        """Render a question, so that a model that can't chat is told before its weights are read.

        Args:
            tokenizer: The target's.
            name: The target's, for the message.

        Raises:
            SettingsError: There is no template.
            LoadError: The template is broken.
        """
        if self.source is None and not tokenizer.chat_template:
            raise SettingsError(
                f"{name} has no chat template, so it is no chat model",
                "give one with --chat-template FILE, or use: specgen generate --chat-template none",
            )
        self.encode(tokenizer, [Message("user", "Hello")])

    def has_system_role(self, tokenizer: Any) -> bool:
        """Whether the template renders a system message; some refuse it, some drop it silently."""
        probe = secrets.token_hex(8)
        try:
            ids = self.encode(tokenizer, [Message("system", probe), Message("user", "Hello")])
        except LoadError:
            return False
        return probe in tokenizer.decode(ids)
