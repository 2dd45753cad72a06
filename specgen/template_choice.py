"""A chat template and its variables in, prompt ids of a conversation out; and what the template can and can't do."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specgen.errors import LoadError, SettingsError
from specgen.prompting import Message, encode_messages


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
