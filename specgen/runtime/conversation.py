"""Keeps the messages of a chat and generates replies that reuse the caches. Knows nothing of terminals and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from specgen.core.errors import PromptError, SpecgenError
from specgen.core.events import Prefill, Round, RoundText, TextEvent
from specgen.core.metrics import Baseline, Counts
from specgen.core.results import RunInfo
from specgen.core.settings import DecodeSettings, ReplySettings
from specgen.runtime.generation import NUM_CALIBRATION_TOKENS, Generation, Request, run_info, target_alone
from specgen.runtime.loaded_models import LoadedModels
from specgen.storage.transcript import ChatMessage, Scalar
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.prefix_reuse import keep_cached_ids
from specgen.text.reasoning import split_reasoning

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


class Conversation:
    """The messages of a chat, and the next reply.

    `messages` is a tuple that is replaced on each change, so callers can keep an old one to go back to.
    """

    def __init__(
        self, models: LoadedModels, settings: ReplySettings, template: ChatTemplate, system: str | None = None
    ) -> None:
        self.models = models
        self.settings = settings
        self.template = template
        self.messages: tuple[ChatMessage, ...] = ()
        self.totals = Counts()
        self.num_replies = 0
        self.baseline: Baseline | None = None
        """Speed of the target alone, measured once; see `calibrate`."""
        self.system: str | None = None
        self.folds_system = False
        """The template has no system role: the system message is put before the first user message."""
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Sets the system message, or removes it (None or ""); the other messages stay."""
        self.system = text or None
        self.folds_system = bool(text) and not self.template.has_system_role(self.models.pair.tokenizer)

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

    def begin_reply(self, settings: ReplySettings | None = None) -> Generation:
        """Returns the next reply, to be run with `stream`.

        Args:
            settings: For this reply only; default: the conversation's.

        Raises:
            PromptError: The conversation fills the window.
            LoadError: The template rejects it.
        """
        settings = settings or self.settings
        prompt_ids = self.prompt_ids()
        use = ContextUse(len(prompt_ids), self.models.pair.window)
        max_new_tokens = settings.max_new_tokens
        if use.window is not None:
            max_new_tokens = min(max_new_tokens, use.window - use.num_tokens)
        if max_new_tokens < 1:
            raise PromptError(
                f"the conversation needs {use.num_tokens} tokens, but the model's window has {use.window}",
                "remove the last exchange with /undo, start again with /clear, or shorten the message",
            )
        limits = DecodeSettings(
            max_new_tokens,
            settings.num_draft_tokens,
            schedule=settings.schedule,
            end_ids=self.models.pair.end_ids,
            strict=settings.strict,
        )
        sampling = replace(settings.sampling, seed=(settings.sampling.seed + self.num_replies) % 2**63)
        self.num_replies += 1
        request = Request(
            prompt_ids,
            limits,
            sampling,
            settings.sampling_source,
            settings.stops,
            show_special_tokens=settings.show_special_tokens,
        )
        return Generation(self.models, request)

    def info(self, settings: ReplySettings) -> RunInfo:
        """Returns what runs, before the first reply."""
        limits = DecodeSettings(settings.max_new_tokens, settings.num_draft_tokens, schedule=settings.schedule)
        return run_info(self.models, Request((), limits, settings.sampling, settings.sampling_source))

    def stream(self, generation: Generation) -> Iterator[TextEvent]:
        """Yields the events of a reply and adds them to the totals."""
        for event in generation:
            if isinstance(event, Prefill):
                self.totals.observe_prefill(event)
            elif isinstance(event, RoundText):
                self.totals.observe(event.round)
            yield event

    def end_reply(self, generation: Generation) -> ChatMessage | None:
        """Adds a reply to the messages, finished or not; returns None if it has no token."""
        counts = generation.counts
        if not counts.num_rounds:
            return None
        generation.baseline = self.baseline
        ids, prompt_ids = generation.token_ids, generation.request.prompt_ids
        tokenizer, text = self.models.pair.tokenizer, generation.text
        if generation.request.show_special_tokens:
            # What is stored is sent again, and a mark in a message would be text to the model.
            text = tokenizer.decode(ids, skip_special_tokens=True)
            text = text.partition(generation.stop_text)[0] if generation.stop_text else text
        thinking, answer = split_reasoning(tokenizer, ids, text, prompt_ids)
        was_cut = generation.finish_reason != "stop"
        message = ChatMessage("assistant", answer, thinking, was_cut, reply_figures(generation))
        self.messages = (*self.messages, message)
        return message

    def calibrate(self, generation: Generation) -> Baseline | None:
        """Times the target alone on a few tokens after a reply, then removes them from its cache.

        Returns:
            None if there is nothing to compare (no drafter, a shorter reply) or the window is full.
        """
        models, sampling = self.models, generation.request.sampling
        text_ids, length = list(models.text_ids), models.target.length
        num_tokens = NUM_CALIBRATION_TOKENS + 1
        window = models.pair.window
        is_short = len(generation.token_ids) < NUM_CALIBRATION_TOKENS
        if generation.info.drafter == "none" or is_short or (window and len(text_ids) + num_tokens > window):
            return None
        counts = Counts()
        try:
            for event in target_alone(models, text_ids, sampling, num_tokens):
                # The first step is a warm-up.
                if isinstance(event, Round) and event.index > 0:
                    counts.observe(event)
        except SpecgenError:
            return None
        finally:
            models.target.rewind(min(length, models.target.length))
        assert counts.tpot_seconds is not None
        self.baseline = generation.baseline = Baseline("calibrate", counts.num_emitted, counts.tpot_seconds)
        return self.baseline

    def context_use(self) -> ContextUse:
        """Returns how much of the window the conversation takes, including the start of the next reply."""
        num_tokens = len(self.prompt_ids()) if self.messages else 0
        return ContextUse(num_tokens, self.models.pair.window)

    def prompt_ids(self) -> list[int]:
        """Encodes the conversation; where the caches contain the same text, returns the tokens in the caches.

        Raises:
            PromptError: A message can't be encoded safely.
            LoadError: The template rejects the conversation.
        """
        tokenizer = self.models.pair.tokenizer
        encoded = self.template.encode(tokenizer, self._turns())
        return keep_cached_ids(tokenizer, self.models.text_ids, encoded)

    def _turns(self) -> list[Message]:
        turns = [Message(message.role, message.content) for message in self.messages]
        if self.system is None:
            return turns
        if not self.folds_system:
            return [Message("system", self.system), *turns]
        return [Message("user", f"{self.system}\n\n{turns[0].content}"), *turns[1:]]


def reply_figures(generation: Generation) -> dict[str, Scalar]:
    """Returns the figures of a reply that are saved with a chat."""
    counts = generation.counts
    return {
        "finish_reason": generation.finish_reason,
        "num_tokens": counts.num_emitted,
        "num_prompt_tokens": counts.num_prompt_tokens,
        "num_reused_tokens": counts.num_reused_tokens,
        "num_rounds": counts.num_rounds,
        "num_drafted": counts.num_drafted,
        "num_accepted": counts.num_accepted,
        "decode_seconds": round(counts.decode_seconds, 6),
        "tokens_per_second": counts.tokens_per_second,
    }
