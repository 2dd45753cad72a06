"""Keeps the messages of a chat and generates replies that reuse the caches. Knows nothing of terminals and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from specgen.core.baseline import Baseline
from specgen.core.doubt import was_disturbed
from specgen.core.errors import PromptError, SpecgenError
from specgen.core.events import Prefill, Round, RoundText, TextEvent
from specgen.core.metrics import Counts
from specgen.core.results import RunInfo
from specgen.core.settings import DecodeSettings, ReplySettings, SamplingSettings
from specgen.engine.contract import num_warmup_passes
from specgen.runtime import learned_costs
from specgen.runtime.answer import Answer
from specgen.runtime.chat_history import ChatHistory, ContextUse
from specgen.runtime.generation import NUM_CALIBRATION_TOKENS, Generation, Request, run_info, target_alone
from specgen.storage.transcript import ChatMessage, Scalar
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.prefix_reuse import keep_cached_ids
from specgen.text.reasoning import split_reasoning

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels


class Conversation(ChatHistory):
    """A chat with models that this program runs."""

    def __init__(
        self, models: LoadedModels, settings: ReplySettings, template: ChatTemplate, system: str | None = None
    ) -> None:
        super().__init__()
        self.models = models
        self.settings = settings
        self.template = template
        self._plain_counts: Counts | None = None
        """Of the target alone, from which `baseline` was computed."""
        self._last: Generation | None = None
        self.set_system(system)

    @property
    def target_name(self) -> str:
        """The name of the target, as the user gave it."""
        return self.models.pair.settings.target.name

    @property
    def sampling_defaults(self) -> SamplingSettings | None:
        """The model's own sampling settings."""
        return self.models.pair.defaults.sampling

    @property
    def first_notices(self) -> tuple[str, ...]:
        """Notices of the loader."""
        return tuple(self.models.notices)

    def set_system(self, text: str | None) -> None:
        """Sets the system message, or removes it (None or ""); the other messages stay."""
        super().set_system(text)
        self.folds_system = bool(text) and not self.template.has_system_role(self.models.pair.tokenizer)

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
        limits = self._limits(settings, max_new_tokens)
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
        limits = self._limits(settings, settings.max_new_tokens)
        return run_info(self.models, Request((), limits, settings.sampling, settings.sampling_source))

    def _limits(self, settings: ReplySettings, max_new_tokens: int) -> DecodeSettings:
        return DecodeSettings(
            max_new_tokens,
            settings.num_draft_tokens,
            schedule=settings.schedule,
            end_ids=self.models.pair.end_ids,
            strict=settings.strict,
            num_tree_nodes=settings.num_tree_nodes,
            tree_schedule=settings.tree_schedule,
        )

    def stream(self, answer: Answer) -> Iterator[TextEvent]:
        """Yields the events of a reply and adds them to the totals."""
        for event in answer:
            if isinstance(event, Prefill):
                self.totals.observe_prefill(event)
            elif isinstance(event, RoundText):
                self.totals.observe(event.round)
            yield event

    def end_reply(self, answer: Answer) -> ChatMessage | None:
        """Adds a reply to the messages, finished or not; returns None if it has no token."""
        generation = _own(answer)
        counts = generation.counts
        if not counts.num_rounds:
            return None
        self._last = generation
        generation.baseline = self.baseline
        self._predict(generation)
        ids, prompt_ids = generation.token_ids, generation.request.prompt_ids
        tokenizer, text = self.models.pair.tokenizer, generation.text
        if generation.request.show_special_tokens:
            # What is stored is sent again, and a mark in a message would be text to the model.
            text = tokenizer.decode(ids, skip_special_tokens=True)
            text = text.partition(generation.stop_text)[0] if generation.stop_text else text
        thinking, content = split_reasoning(tokenizer, ids, text, prompt_ids)
        was_cut = generation.finish_reason != "stop"
        message = ChatMessage("assistant", content, thinking, was_cut, reply_figures(generation))
        self.messages = (*self.messages, message)
        return message

    def calibrate(self, answer: Answer) -> Baseline | None:
        """Times the target alone on a few tokens after a reply, then removes them from its cache.

        Returns:
            None if there is nothing to compare (no drafter, a shorter reply) or the window is full.
        """
        generation = _own(answer)
        models, sampling = self.models, generation.request.sampling
        text_ids, length = list(models.text_ids), models.target.length
        num_uncounted = num_warmup_passes(models.target)
        num_tokens = NUM_CALIBRATION_TOKENS + num_uncounted
        window = models.pair.window
        is_short = len(generation.token_ids) < NUM_CALIBRATION_TOKENS
        if generation.info.drafter == "none" or is_short or (window and len(text_ids) + num_tokens > window):
            return None
        counts = Counts()
        try:
            for event in target_alone(models, text_ids, sampling, num_tokens):
                if isinstance(event, Round) and event.index >= num_uncounted and not event.is_warmup:
                    counts.observe(event)
                    models.draft_length.costs.observe(1, event.verify_seconds)
        except SpecgenError:
            return None
        finally:
            models.target.rewind(min(length, models.target.length))
        if counts.tpot_seconds is None:  # all steps were warm-ups
            return None
        self.baseline = generation.baseline = Baseline("calibrate", counts.num_emitted, counts.tpot_seconds)
        self._plain_counts = counts
        self._predict(generation)
        return self.baseline

    def _predict(self, generation: Generation) -> None:
        """Predicts the speedup of a reply from the costs of passes, once the target alone was timed."""
        if self._plain_counts is not None and generation.info.drafter != "none":
            generation.forecast = learned_costs.predict(self.models, generation.counts, self._plain_counts)

    def abandon_reply(self) -> None:
        """Empties the caches after a prefill that was stopped."""
        self.models.reset_caches()

    def finish(self) -> None:
        """Saves the measured costs of passes for later runs, unless other programs disturbed the last reply.

        The costs are medians of the last passes.
        """
        if self._last is None or not was_disturbed(self._last.report()):
            learned_costs.save(self.models)

    def repeats(self, answer: Answer) -> bool:
        """Returns whether the next reply has the prompt of an earlier one."""
        return list(_own(answer).request.prompt_ids) == self.prompt_ids()

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


def _own(answer: Answer) -> Generation:
    """Narrows an answer that `begin_reply` returned."""
    assert isinstance(answer, Generation)
    return answer


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
