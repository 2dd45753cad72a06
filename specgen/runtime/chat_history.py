"""Keeps the messages of a chat, and defines what a chat needs to get replies. Imports no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from specgen.core.baseline import Baseline
from specgen.core.events import TextEvent
from specgen.core.metrics import Counts
from specgen.core.results import RunInfo
from specgen.core.settings import ReplySettings, SamplingSettings
from specgen.runtime.answer import Answer
from specgen.storage.transcript import ChatMessage

WARN_AT = 0.9
"""Used share of the context window from which a chat warns the user."""


@dataclass(frozen=True, slots=True)
class ContextUse:
    """How full the context window is; `window` is None if the model does not name it."""

    num_tokens: int
    window: int | None

    @property
    def share(self) -> float:
        """Used share of the window; 0 if the window is unknown."""
        return 0.0 if self.window is None else self.num_tokens / self.window

    @property
    def is_nearly_full(self) -> bool:
        """Whether to warn the user."""
        return self.share >= WARN_AT


class ChatHistory(ABC):
    """The messages of a chat, and the next reply, by models of this program or by a server.

    `messages` is a tuple that is replaced on each change, so callers can keep an old one to go back to.
    """

    def __init__(self) -> None:
        self.messages: tuple[ChatMessage, ...] = ()
        self.totals = Counts()
        self.num_replies = 0
        self.baseline: Baseline | None = None
        """Speed of the target alone, measured once; see `calibrate`."""
        self.system: str | None = None
        self.folds_system = False
        """The template has no system role: the system message is put before the first user message."""

    def set_system(self, text: str | None) -> None:
        """Sets the system message, or removes it (None or ""); the other messages stay."""
        self.system = text or None

    def say(self, text: str) -> None:
        """Adds a user message. A message without a reply is continued, because templates require alternating roles."""
        if self.messages and self.messages[-1].role == "user":
            text = f"{self.messages[-1].content}\n\n{text}"
            self.messages = self.messages[:-1]
        self.messages = (*self.messages, ChatMessage("user", text))

    @property
    def last_user_text(self) -> str | None:
        """The last user message; None before the first one."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), None)

    @property
    def last_reply(self) -> ChatMessage | None:
        """The last reply; None before the first one."""
        return next((message for message in reversed(self.messages) if message.role == "assistant"), None)

    def take_back(self) -> str | None:
        """Removes the last user message and the reply to it; returns the message, or None if nothing was said."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                text = self.messages[index].content
                self.messages = self.messages[:index]
                return text
        return None

    def drop_reply(self) -> bool:
        """Removes the last reply, so that the next one replaces it. Returns False if there is nothing to reply to."""
        while self.messages and self.messages[-1].role == "assistant":
            self.messages = self.messages[:-1]
        return bool(self.messages)

    @property
    @abstractmethod
    def target_name(self) -> str:
        """The name of the model that replies."""

    @property
    def sampling_defaults(self) -> SamplingSettings | None:
        """The model's own sampling settings; None if they are unknown."""
        return None

    @property
    def first_notices(self) -> tuple[str, ...]:
        """What the user should know before the first message."""
        return ()

    @abstractmethod
    def info(self, settings: ReplySettings) -> RunInfo:
        """Returns what runs, before the first reply."""

    @abstractmethod
    def begin_reply(self, settings: ReplySettings | None = None) -> Answer:
        """Returns the next reply, to be run with `stream`.

        Raises:
            SpecgenError: There can be no reply to these messages with these settings.
        """

    @abstractmethod
    def stream(self, answer: Answer) -> Iterator[TextEvent]:
        """Yields the events of a reply and adds them to the totals."""

    @abstractmethod
    def end_reply(self, answer: Answer) -> ChatMessage | None:
        """Adds a reply to the messages, finished or not; returns None if it has no token."""

    def abandon_reply(self) -> None:  # noqa: B027
        """Cleans up after a reply that was stopped before its first token."""

    def calibrate(self, answer: Answer) -> Baseline | None:  # noqa: ARG002
        """Times the target alone after a reply; None if there is nothing to compare."""
        return None

    @abstractmethod
    def repeats(self, answer: Answer) -> bool:
        """Returns whether the next reply has the prompt of an earlier one."""

    def finish(self) -> None:  # noqa: B027
        """Saves what later runs can use, and closes what is open."""

    @abstractmethod
    def context_use(self) -> ContextUse:
        """Returns how much of the window the conversation takes."""
