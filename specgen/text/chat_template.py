"""Renders conversations with chat templates and encodes them so that user text can't become control tokens."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specgen.core.errors import LoadError, PromptError, SettingsError
from specgen.text.template_sandbox import NO_TEMPLATE, template_limits

FOLDED = "the chat template has no system role; the system message is prepended to the next user message"
"""The notice for a message that `ChatTemplate.encode` folds."""
MAX_COPIES = 4
"""How often a template may render each message."""
MAX_EXTRA_CHARS = 2**20
"""Characters that a template may add to the messages."""
_MARK = re.compile(r"[<\[].*[_|｜:].*[>\]]")
"""Spelling of a mark that no language of markup has: `<|fim_prefix|>`, `<tool_call>`, `[AVAILABLE_TOOLS]`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Encodes a raw prompt (`--chat-template none`): special tokens in it keep their meaning.

    The begin token of a text that is written out is not added again.

    Raises:
        PromptError: The prompt is empty, and the tokenizer has no begin token to start from.
    """
    ids = _ids(tokenizer, text, add_special_tokens=True)
    begin = tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin] and text.startswith(tokenizer.bos_token):
        # Rendered templates are pasted with their begin token, and the tokenizer adds another.
        del ids[0]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise PromptError("the prompt is empty", "give a prompt of at least one character")
    return ids


def encode_messages(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Encodes messages without a chat template, a blank line between them; raises like `encode_text`."""
    return encode_text(tokenizer, "\n\n".join(message.content for message in messages))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template and its variables.

    Args:
        source: Jinja source; None: the tokenizer's own template.
        options: Further variables for the template.
    """

    source: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation, up to where the assistant's reply begins.

        A system message becomes the start of the next user message if the template refuses or drops system messages.

        Text of a message never becomes a control token: a message that contains the string of one is rendered with a
        random placeholder as its content, and the content is encoded separately, as plain text.

        Args:
            tokenizer: A transformers tokenizer.
            messages: The conversation so far.

        Raises:
            SettingsError: There is no chat template.
            PromptError: The template renders nothing; or messages contain control tokens, and the template or the
                tokenizer changes these messages, so that text and control tokens can't be separated.
            LoadError: The template fails, takes too long, or refuses the conversation.
        """
        if lack := self._lack(tokenizer):
            raise SettingsError(f"the model has {lack}", "use --chat-template FILE, or --chat-template none")
        if self.folds_system(tokenizer, messages):
            messages = _folded(messages)
        return self._encode(tokenizer, messages)

    def _encode(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        control = self.control_tokens(tokenizer)
        unsafe = [index for index, m in enumerate(messages) if _contains_control(tokenizer, m.content, control)]
        if unsafe:
            ids = self._encode_with_placeholders(tokenizer, messages, unsafe, control)
        else:
            ids = _plain_ids(tokenizer, self._render(tokenizer, messages))
        if not ids:
            raise PromptError("the chat template renders an empty prompt", "use another template")
        return ids

    def control_tokens(self, tokenizer: Any) -> dict[str, int]:
        """Returns the ids of control tokens by content: what a message must not contain.

        An added token is one if it is special, if the template writes it, or if it is spelled like a mark. Others are
        text that makers added to their vocabulary, as Gemma's runs of spaces and `<h1>`.
        """
        source = self._source(tokenizer)

        def is_mark(text: str) -> bool:
            return _MARK.fullmatch(text) is not None or (bool(text.strip()) and text in source)

        added = tokenizer.added_tokens_decoder.items()
        # A single character can't be split, and is a control token in no known template.
        several = ((token_id, token) for token_id, token in added if len(token.content) > 1)
        return {token.content: token_id for token_id, token in several if token.special or is_mark(token.content)}

    def check(self, tokenizer: Any, model_name: str) -> None:
        """Renders one question, so that a model without a usable template is refused before its weights are read.

        Raises:
            SettingsError: There is no chat template.
            LoadError: The template fails.
        """
        if lack := self._lack(tokenizer):
            hint = "give one with --chat-template FILE, or use: specgen generate --chat-template none"
            raise SettingsError(f"{model_name} can't chat: it has {lack}", hint)
        self.encode(tokenizer, [Message("user", "Hello")])

    def folds_system(self, tokenizer: Any, messages: Sequence[Message]) -> bool:
        """Returns whether `encode` moves system messages of this conversation into user messages."""
        return any(message.role == "system" for message in messages) and not self.has_system_role(tokenizer)

    def has_system_role(self, tokenizer: Any) -> bool:
        """Returns whether the template renders a system message; some refuse it, some drop it silently."""
        marker = secrets.token_hex(8)
        try:
            ids = self._encode(tokenizer, [Message("system", marker), Message("user", "Hello")])
        except LoadError:
            return False
        return marker in tokenizer.decode(ids)

    def _lack(self, tokenizer: Any) -> str:
        has_template = self.source is not None or tokenizer.chat_template
        return "" if has_template else getattr(tokenizer, "template_lack", NO_TEMPLATE)

    def _source(self, tokenizer: Any) -> str:
        return (tokenizer.chat_template if self.source is None else self.source) or ""

    def _encode_with_placeholders(
        self, tokenizer: Any, messages: Sequence[Message], unsafe: Sequence[int], control: Mapping[str, int]
    ) -> list[int]:
        # Only unsafe messages get a placeholder: templates may change the others, as they do with earlier replies.
        placeholders = {index: secrets.token_hex(16) for index in unsafe}
        masked = [Message(m.role, placeholders.get(index, m.content)) for index, m in enumerate(messages)]
        rest = self._render(tokenizer, masked)
        ids: list[int] = []
        for index, placeholder in placeholders.items():
            message = messages[index]
            if rest.count(placeholder) != 1:
                raise PromptError(
                    f"the chat template repeats or drops a {message.role} message that contains control tokens",
                    "remove the control tokens from the message, or use --chat-template none",
                )
            before, rest = rest.split(placeholder)
            ids += _plain_ids(tokenizer, before)
            for piece in _split_control_strings(message.content, control):
                piece_ids = _plain_ids(tokenizer, piece)
                if _contains_control_ids(tokenizer, piece_ids, control):
                    raise PromptError(
                        f"the tokenizer normalizes text of a {message.role} message to control tokens",
                        "change the text, or use --chat-template none",
                    )
                ids += piece_ids
        return ids + _plain_ids(tokenizer, rest)

    def _render(self, tokenizer: Any, messages: Sequence[Message]) -> str:
        return self._render_turns(tokenizer, messages, in_parts=self._reads_parts(tokenizer))

    def _reads_parts(self, tokenizer: Any) -> bool:
        """Returns whether the template reads only contents that are lists of parts, as those of images and text do.

        Such a template drops a string silently, or renders parts of it, so one question is rendered in both forms.
        """
        source = self._source(tokenizer)
        if "text" not in source or not ("type" in source or "[0]" in source):
            return False
        question = [Message("user", secrets.token_hex(8))]

        def renders(in_parts: bool) -> bool:
            try:
                return question[0].content in self._render_turns(tokenizer, question, in_parts=in_parts)
            except LoadError:
                return False

        return not renders(False) and renders(True)

    def _render_turns(self, tokenizer: Any, messages: Sequence[Message], *, in_parts: bool) -> str:
        def content(message: Message) -> str | list[dict[str, str]]:
            return [{"type": "text", "text": message.content}] if in_parts else message.content

        turns = [{"role": message.role, "content": content(message)} for message in messages]
        options = {**self.options, "chat_template": self.source}
        hint = "use --chat-template none, or give another with --chat-template FILE"
        try:
            with template_limits():
                text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
        except MemoryError as error:
            raise LoadError("the chat template failed: it took too much memory", hint) from error
        except Exception as error:  # Jinja and the template itself can raise anything
            raise LoadError(f"the chat template failed: {error}", hint) from error
        if len(text) > MAX_COPIES * sum(len(message.content) for message in messages) + MAX_EXTRA_CHARS:
            raise LoadError(f"the chat template failed: it rendered {len(text)} characters", hint)
        return text


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with the text of each system message at the start of the next user message."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            folded.append(Message("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            folded.append(message)
    if waiting and folded and folded[-1].role == "user":
        waiting.insert(0, folded.pop().content)
    return [*folded, Message("user", "\n\n".join(waiting))] if waiting else folded


def _contains_control(tokenizer: Any, text: str, control: Mapping[str, int]) -> bool:
    """Returns whether the text contains a control token, before or after the tokenizer normalizes it."""
    return any(string in text for string in control) or _contains_control_ids(
        tokenizer, _plain_ids(tokenizer, text), control
    )


def _contains_control_ids(tokenizer: Any, ids: Sequence[int], control: Mapping[str, int]) -> bool:
    # In some tokenizers the token for unknown text is an added one, and any text may contain it.
    return not (set(control.values()) - {tokenizer.unk_token_id}).isdisjoint(ids)


def _split_control_strings(text: str, control: Iterable[str]) -> list[str]:
    """Splits text after the first character of each control string, so that no piece contains one.

    `split_special_tokens=True` is not enough: it leaves added tokens that aren't special (`<tool_call>`) whole.
    """
    longest_first = sorted(control, key=len, reverse=True)
    occurrence = re.compile("|".join(re.escape(string) for string in longest_first))
    pieces = []
    while match := occurrence.search(text):
        pieces.append(text[: match.start() + 1])
        text = text[match.start() + 1 :]
    return [*pieces, text]


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return _ids(tokenizer, text, add_special_tokens=False)


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except (TypeError, UnicodeEncodeError) as error:
        found = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
        if found is None:
            raise
        raise PromptError(
            f"the prompt contains {found.encode('unicode_escape').decode()}, half of a character",
            "replace it: JSON escapes such characters in two halves",
        ) from error
    return ids
