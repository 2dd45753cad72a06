"""Answers by a server: yields the pieces it sends, and reports the figures it sends, each with its source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter

from specgen.core.baseline import Baseline
from specgen.core.comparison import first_difference
from specgen.core.errors import ServerError
from specgen.core.events import FinalText, Finish, FinishReason, Prefill, ServedText, TextEvent
from specgen.core.metrics import Counts, Detail
from specgen.core.results import RunInfo, RunReport, ServedFigures
from specgen.core.settings import BaselineMethod
from specgen.runtime.servers.counts import count_acceptance, with_rounds
from specgen.runtime.servers.event_stream import EventStream
from specgen.runtime.servers.launch.command import baseline_command
from specgen.runtime.servers.live import LiveRounds
from specgen.runtime.servers.prometheus import Counters
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import Acceptance, ChatRequest, Delta

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass
class _Received:
    """What was received of an answer so far. Seconds are those of our clock."""

    num_tokens: int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_pieces: int = 0
    first_seconds: float | None = None
    last_seconds: float = 0.0
    num_first_tokens: int = 1
    server_seconds: float | None = None
    acceptance: Acceptance | None = None
    finish_reason: str | None = None

    def add(self, delta: Delta, now: float) -> None:
        """Takes the figures of an event."""
        figures = delta.figures
        if delta.text or delta.reasoning or delta.num_new_tokens:
            self.num_pieces += 1
            if self.first_seconds is None:
                self.first_seconds = now
                self.num_first_tokens = delta.num_new_tokens or figures.num_tokens or 1
            self.last_seconds = now
        if figures.num_tokens is not None:
            self.num_tokens = figures.num_tokens
        elif delta.num_new_tokens is not None:
            self.num_tokens = (self.num_tokens or 0) + delta.num_new_tokens
        self.num_prompt_tokens = figures.num_prompt_tokens or self.num_prompt_tokens
        self.num_cached_tokens = figures.num_cached_tokens or self.num_cached_tokens
        self.server_seconds = self.server_seconds if figures.decode_seconds is None else figures.decode_seconds
        self.acceptance = figures.acceptance or self.acceptance
        self.finish_reason = delta.finish_reason or self.finish_reason


class ServedAnswer:
    """An answer of a server: iterate over its events, then call `report`.

    Args:
        server: Who answers.
        request: What it is asked.
        info: What runs, for the report.
        baseline: A server without drafts that `measure_baseline` asks the same.
    """

    def __init__(self, server: Server, request: ChatRequest, info: RunInfo, baseline: Server | None = None) -> None:
        self.info = info
        self.counts = Counts(is_served=True, detail=Detail.NOTHING)
        self.clock = perf_counter
        self.is_interrupted = False
        self.text = ""
        self.finish_reason: FinishReason = "interrupted"
        self.baseline: Baseline | None = None
        self.uses_own_clock = False
        """Times the answer by our own clock, although the server sends its time."""
        self.received = _Received()
        self.rounds = LiveRounds()
        self.notices: list[str] = []
        self.request = request
        self._server, self._baseline = server, baseline
        self._events: EventStream | None = None
        self._compared: ServedAnswer | None = None
        self._is_thinking = False
        self._total_seconds = 0.0

    @property
    def first_notices(self) -> tuple[str, ...]:
        """Nothing: a server has no notices of loading."""
        return ()

    @property
    def has_begun(self) -> bool:
        """Whether any text has come."""
        return self.received.num_pieces > 0

    def interrupt(self) -> None:
        """Ends the connection, on which engines stop. Safe to call from a signal handler."""
        self.is_interrupted = True
        if self._events is not None:
            self._events.close()
        if self._compared is not None:
            self._compared.interrupt()

    def __iter__(self) -> Iterator[TextEvent]:
        before = self._server.counters()
        started, error = self.clock(), None
        try:
            with self._server.stream(self.request) as (self._events, deltas):
                if self.is_interrupted:  # while the server had not answered
                    self._events.close()
                for delta in deltas:
                    self.received.add(delta, self.clock() - started)
                    yield from self._pieces(delta)
                    if self._should_end():
                        break
            self.finish_reason = _REASONS.get(self.received.finish_reason or "", "stop")
        except ServerError as failure:
            self.finish_reason, error = "error", failure
        finally:
            self._events = None
            self._total_seconds = self.clock() - started
        if self._should_end() and self.received.finish_reason is None:
            self.finish_reason = "interrupted"
        if self.received.acceptance is None and error is None:
            self._ask_counters(before)
        self._count()
        yield FinalText("", Finish(self.finish_reason))
        if error is not None and self.finish_reason == "error":
            raise error

    def _should_end(self) -> bool:
        return self.is_interrupted

    def _pieces(self, delta: Delta) -> Iterator[ServedText]:
        """Yields the text of an event; reasoning in the marks that models write around it."""
        if delta.figures.problem and delta.figures.problem not in self.notices:
            self.notices.append(delta.figures.problem)
        figures, state = delta.figures, None
        if delta.text or delta.reasoning:
            state = self.rounds.observe(figures.num_tokens, figures.num_drafted, figures.num_accepted)
        parts = []
        if delta.reasoning:
            parts.append(delta.reasoning if self._is_thinking else f"<think>\n{delta.reasoning}")
            self._is_thinking = True
        if delta.text:
            parts.append(f"\n</think>\n\n{delta.text}" if self._is_thinking else delta.text)
            self._is_thinking = False
        for text in parts:
            self.text += text
            yield ServedText(text, state, delta.num_new_tokens)

    def _ask_counters(self, before: Counters | None) -> None:
        """Takes the growth of the server's counters for this answer's, if there was no other request."""
        after = self._server.counters() if before is not None else None
        grown = after.since(before) if before is not None and after is not None else None
        is_alone = before is not None and before.num_running == 0 and after is not None and after.num_running == 0
        num_tokens = self.received.num_tokens
        if grown is not None and is_alone and num_tokens is not None and grown.num_accepted < max(num_tokens, 1):
            self.received.acceptance = grown

    def _count(self) -> None:
        """Fills the counts from what was received."""
        received, counts = self.received, Counts(is_served=True, detail=Detail.NOTHING)
        counts.num_emitted = received.num_tokens or 0
        first = received.first_seconds or 0.0
        counts.observe_prefill(Prefill(received.num_prompt_tokens, received.num_cached_tokens, first, 0.0))
        if received.server_seconds is not None and not self.uses_own_clock:
            counts.other_seconds, counts.num_untimed = received.server_seconds, min(1, counts.num_emitted)
        else:
            counts.other_seconds = received.last_seconds - first
            counts.num_untimed = min(received.num_first_tokens, counts.num_emitted)
        found = with_rounds(received.acceptance, self.rounds)
        if found is not None:
            count_acceptance(counts, found)
        self.counts = counts

    def measure_baseline(self, method: BaselineMethod) -> Baseline | None:
        """Asks the baseline server the same, for an answer of equal length; both are timed by the same clock.

        Without one, the same server is asked without a draft, if its engine takes the draft with the request.

        Returns:
            None if there is nothing to ask, for an answer of one token, or if `method` is `off`.

        Raises:
            ServerError: The server failed.
        """
        num_tokens, draft_field = self.received.num_tokens, self._server.engine.draft_field
        is_same_server = self._baseline is None and draft_field in self.request.fields
        server = self._server if is_same_server else self._baseline
        if server is None or method == "off" or not num_tokens or num_tokens < 2 or self.is_interrupted:
            return None
        request = replace(
            self.request,
            max_tokens=num_tokens,
            stops=(),
            ignore_eos=server.engine.has_ignore_eos,
            fields={name: value for name, value in self.request.fields.items() if name != draft_field},
        )
        own, other = self._server.facts, server.facts
        if {own.model, own.root} - {""} and not {own.model, own.root} & {other.model, other.root} - {""}:
            self.notices.append(f"the baseline server runs another model: {other.model}, not {own.model}")
        answer = self._compared = ServedAnswer(server, request, self.info)
        self.uses_own_clock = self.received.server_seconds is None or own.engine != other.engine
        answer.uses_own_clock = self.uses_own_clock
        for _ in answer:
            pass
        if self._should_end():
            return None
        if answer.counts.num_drafted:
            self.notices.append(f"{server.client.address.host} drafted in the answer that was to be without drafts")
            return None
        if answer.received.server_seconds is None and not self.uses_own_clock:
            self.uses_own_clock = answer.uses_own_clock = True
            answer._count()
        self._count()
        if (tpot := answer.counts.tpot_seconds) is None:
            return None
        compared = self.request.sampling.get("temperature", 0) == 0
        difference = first_character(answer.text, self.text) if compared else None
        self.baseline = Baseline(
            "request" if is_same_server else "server", answer.counts.num_emitted, tpot, difference, compared
        )
        return self.baseline

    def report(self) -> RunReport:
        """Returns what is known of the run so far; may be called at any time, also after an error."""
        received, counts = self.received, self.counts
        acceptance = None if received.acceptance is None else received.acceptance.source
        num_steps = counts.num_emitted - 1 - counts.num_accepted
        ceiling = (counts.num_emitted - 1) / num_steps if counts.num_drafted and num_steps > 0 else None
        has_own_clock = self.uses_own_clock or received.server_seconds is None
        advice = "" if acceptance is not None else "; ".join(self._server.facts.advice)
        is_open = self.baseline is None and self._baseline is None and ceiling is not None
        command = baseline_command(self._server) if is_open else ""
        return RunReport(
            info=self.info,
            counts=counts,
            text=self.text,
            finish_reason=self.finish_reason,
            total_seconds=self._total_seconds,
            peak_memory_bytes=0,
            baseline=self.baseline,
            notices=tuple(self.notices),
            served=ServedFigures(acceptance, "client" if has_own_clock else "response", ceiling, advice, command),
        )

    def finish(self) -> None:
        """Closes the connections."""
        for server in (self._server, self._baseline):
            if server is not None:
                with suppress(OSError):
                    server.client.close()


def first_character(one: str, other: str) -> int | None:
    """Returns the index of the first character that differs; None if one text begins with the other."""
    position = first_difference(one, other)
    return position if position != min(len(one), len(other)) else None
