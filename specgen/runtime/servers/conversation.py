"""A chat with a server, which gets all messages every turn and keeps what it needs in its own prefix cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from specgen.core.baseline import Baseline
from specgen.core.events import TextEvent
from specgen.core.results import ModelInfo, RunInfo, ServerInfo
from specgen.core.settings import ReplySettings, SamplingSettings
from specgen.runtime.answer import Answer
from specgen.runtime.chat_history import ChatHistory, ContextUse
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import ChatRequest
from specgen.storage.transcript import ChatMessage

_NUM_TEMPLATE_TOKENS = 64
"""Upper estimate of the tokens that a template adds to a turn."""


class ServedConversation(ChatHistory):
    """A chat whose replies a server generates; the chat template is the server's.

    Args:
        server: Who replies.
        settings: Of replies without settings of their own.
        fields: Further fields of each request, such as variables of the template.
        baseline_server: A server without drafts that `calibrate` asks the same.
    """

    def __init__(
        self,
        server: Server,
        settings: ReplySettings,
        fields: Mapping[str, Any] | None = None,
        baseline_server: Server | None = None,
    ) -> None:
        super().__init__()
        self.server = server
        self._baseline_server = baseline_server
        self._uses_own_clock = False
        self.settings = settings
        self._fields = dict(fields or {})
        self._num_tokens = 0
        self._counted: tuple[ChatMessage, ...] = ()

    @property
    def target_name(self) -> str:
        """The model's name on the server."""
        return self.server.facts.model

    def info(self, settings: ReplySettings) -> RunInfo:
        """Returns what is known before the first reply."""
        return served_info(self.server, settings, self._baseline_server, self._fields)

    def begin_reply(self, settings: ReplySettings | None = None) -> ServedAnswer:
        """Returns the next reply, to be run with `stream`.

        Raises:
            SettingsError: The engine has no such sampling setting.
        """
        settings = settings or self.settings
        sampling = sampling_fields(settings.sampling, self.server)
        if "seed" in sampling:
            sampling["seed"] = (settings.sampling.seed + self.num_replies) % 2**31
        request = ChatRequest(self._turns(), self._max_tokens(settings), sampling, settings.stops, False, self._fields)
        self.server.body(request, stream=True)  # refuses what the engine does not know
        self.num_replies += 1
        answer = ServedAnswer(self.server, request, self.info(settings), self._baseline_server)
        if self.baseline is not None:
            # Its time holds for this reply, too, if the clock is the same; its text was another reply's.
            answer.baseline = replace(self.baseline, first_difference=None, compared=False)
            answer.uses_own_clock = self._uses_own_clock
        return answer

    def _turns(self) -> list[dict[str, str]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *({"role": message.role, "content": message.content} for message in self.messages)]

    def _max_tokens(self, settings: ReplySettings) -> int:
        """Returns the longest reply. Engines refuse one that may not fit the window, so the estimate is cautious."""
        window, counted = self.server.facts.window, self._counted
        is_continued = bool(counted) and self.messages[: len(counted)] == counted
        new = self.messages[len(counted) :] if is_continued else self.messages
        num_bytes = sum(len(message.content.encode("utf-8", "replace")) for message in new)
        room = (window or 0) - num_bytes - _NUM_TEMPLATE_TOKENS - (self._num_tokens if is_continued else 0)
        return min(settings.max_new_tokens, room) if room > 0 else settings.max_new_tokens

    def stream(self, answer: Answer) -> Iterator[TextEvent]:
        """Yields the events of a reply."""
        yield from answer

    def end_reply(self, answer: Answer) -> ChatMessage | None:
        """Adds a reply to the messages, finished or not; returns None if nothing came."""
        if not answer.has_begun:
            return None
        report, counts, totals = answer.report(), answer.counts, self.totals
        totals.include(counts)
        thinking, content = split_marked(report.text)
        stats = {
            "finish_reason": report.finish_reason,
            "num_tokens": counts.num_emitted,
            "num_prompt_tokens": counts.num_prompt_tokens,
            "num_reused_tokens": counts.num_reused_tokens,
            "num_drafted": counts.num_drafted,
            "num_accepted": counts.num_accepted,
            "tokens_per_second": counts.tokens_per_second,
        }
        message = ChatMessage("assistant", content, thinking, report.finish_reason != "stop", stats)
        self.messages = (*self.messages, message)
        self._num_tokens = counts.num_prompt_tokens + counts.num_emitted if counts.num_prompt_tokens else 0
        self._counted = self.messages if self._num_tokens else ()
        return message

    def calibrate(self, answer: Answer) -> Baseline | None:
        """Asks the baseline server for the same reply; None if there is none, or the reply has less than two tokens.

        Raises:
            ServerError: The baseline server failed.
        """
        baseline = answer.measure_baseline("full")
        if baseline is not None and isinstance(answer, ServedAnswer):
            self.baseline, self._uses_own_clock = baseline, answer.uses_own_clock
        return baseline

    def finish(self) -> None:
        """Closes the connections."""
        for server in (self.server, self._baseline_server):
            if server is not None:
                server.client.close()

    def repeats(self, answer: Answer) -> bool:
        """Returns whether the next reply has the prompt of an earlier one."""
        return isinstance(answer, ServedAnswer) and list(answer.request.messages) == self._turns()

    def context_use(self) -> ContextUse:
        """Returns what the server sent after the last reply; 0 tokens if it sent no counts for these messages."""
        return ContextUse(self._num_tokens if self.messages == self._counted else 0, self.server.facts.window)


def split_marked(text: str) -> tuple[str, str]:
    """Splits the text of a served answer into its reasoning, between the marks of `ServedAnswer`, and the answer."""
    if not text.startswith("<think>"):
        return "", text
    thinking, _, answer = text.removeprefix("<think>").partition("</think>")
    return thinking.strip(), answer.lstrip("\n")


def served_info(
    server: Server, settings: ReplySettings, baseline: Server | None = None, fields: Mapping[str, Any] | None = None
) -> RunInfo:
    """Returns what is known of an answer of a server before its first token.

    Args:
        server: Who answers.
        settings: Of the answer.
        baseline: The server without drafts that is asked the same.
        fields: Further fields of the request, one of which may name a draft.
    """
    draft = (fields or {}).get(server.engine.draft_field)
    facts, host = server.facts, server.client.address.host
    return RunInfo(
        target=ModelInfo(facts.model, "", "", "", remark=f"{facts.name} at {host}"),
        draft=None if draft is None else ModelInfo(str(draft), "", "", ""),
        drafter="server",
        num_draft_tokens=0,
        sampling=settings.sampling,
        sampling_source=settings.sampling_source,
        max_new_tokens=settings.max_new_tokens,
        load_seconds=0.0,
        server=ServerInfo(
            facts.name, host, "" if baseline is None else baseline.client.address.host, facts.engine == "llama-server"
        ),
    )


def sampling_fields(sampling: SamplingSettings, server: Server) -> dict[str, float]:
    """Returns the sampling settings to send.

    A server has defaults of its own, llama-server samples with temperature 0.8: so neutral values are sent, too, as
    far as the engine is known.
    """
    values: dict[str, float] = {
        "repetition_penalty": sampling.repetition_penalty,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    neutral = {"repetition_penalty": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    known = server.engine.sampling_fields
    # An engine that knows `ignore_eos` is known well enough to send it neutral values.
    takes_neutral = server.engine.has_ignore_eos
    sent: dict[str, float] = {"temperature": sampling.temperature}
    for name, value in values.items():
        is_needed = takes_neutral and name in known and (name == "repetition_penalty" or not sampling.is_greedy)
        if value != neutral[name] or is_needed:
            sent[name] = value
    if not sampling.is_greedy and "seed" in known:
        sent["seed"] = sampling.seed
    return sent
