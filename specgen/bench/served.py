"""Benchmarks servers: every prompt on every server, in turn, against one without drafts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from specgen.bench.results import BASELINE, BenchReport, BenchSettings, BenchStep, Failure, Prompt, Run, Setting, Stage
from specgen.bench.served_doubts import ServedDoubts
from specgen.bench.served_texts import ServedTexts
from specgen.core.errors import ServerBusyError, ServerError, SpecgenError
from specgen.core.results import RunInfo
from specgen.core.settings import ReplySettings
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.conversation import sampling_fields, served_info
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import ChatRequest
from specgen.text.prompts import PromptEntry

BUSY_SECONDS = 1.0
"""Wait before a run that a busy server has refused is sent again."""


@dataclass
class ServedBenchmark:
    """Asks every server every prompt, alternately forwards and backwards, at every concurrency. Iterate for its steps.

    Args:
        servers: The one without drafts first.
        prompts: What to answer; of a conversation only the first turn.
        config: How to measure.
        fields: Further fields of every request.
        environment: Of this machine, for the report.
    """

    servers: Sequence[Server]
    prompts: Sequence[PromptEntry]
    config: BenchSettings
    fields: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settings = tuple(
            _setting(index, server, concurrency)
            for concurrency in self.config.concurrencies
            for index, server in enumerate(self.servers)
        )
        self._runs: list[Run] = []
        self._failures: dict[int, Failure] = {}
        self._num_tokens: dict[int, int] = {}
        self._doubts = ServedDoubts(self.servers)
        self._texts = ServedTexts(
            self.servers[BASELINE], self._request, lambda found: self._doubts.add_acceptance(BASELINE, found)
        )
        # The clocks of different engines start at different events, so one clock of ours is used for all of them.
        self._uses_own_clock = len({server.facts.engine for server in self.servers}) > 1
        self._answers: set[ServedAnswer] = set()
        self._is_interrupted = self._is_complete = self._is_out_of_time = False
        self._num_done = 0
        self._start = perf_counter()

    def interrupt(self) -> None:
        """Ends the answers in progress, which do not count, and the benchmark. Safe in a signal handler."""
        self._is_interrupted = True
        for answer in list(self._answers):
            answer.interrupt()

    def __iter__(self) -> Iterator[BenchStep]:
        self._start = perf_counter()
        self._doubts.begin()
        yield self._step("reading")
        for index in range(len(self._settings)):
            # At least one, which shows whether all servers send their times.
            for _ in range(max(self.config.num_warmups, 1)):
                for _ in self._at_once(index, range(self._settings[index].concurrency), 0):
                    pass
                yield self._step("warmup")
        for repeat in range(self.config.num_repeats):
            if self._should_end():
                break
            for first in range(0, len(self._settings), len(self.servers)):
                yield from self._repeat(range(first, first + len(self.servers)), repeat)
            yield self._step("repeat")
        self._is_complete = not self._is_interrupted and not self._is_out_of_time
        if self._is_complete:
            self._doubts.end()
        yield self._step("end")

    def _should_end(self) -> bool:
        limit = self.config.time_limit_seconds
        self._is_out_of_time |= limit is not None and bool(self._runs) and perf_counter() - self._start > limit
        return self._is_interrupted or self._is_out_of_time

    def _repeat(self, settings: range, repeat: int) -> Iterator[BenchStep]:
        """Runs all prompts in settings of one concurrency.

        One request at a time, the servers take turns at every prompt; else each gets all prompts before the next one.
        """
        is_single = self._settings[settings[0]].concurrency == 1
        everything = range(len(self.prompts))
        for prompts in [range(prompt, prompt + 1) for prompt in everything] if is_single else [everything]:
            if self._should_end():
                return
            is_reversed = (prompts[0] + repeat) % 2
            for index in reversed(settings) if is_reversed else settings:
                for run in self._at_once(index, prompts, repeat):
                    if run is not None:
                        self._runs.append(run)
                    yield self._step("run", run)
            for prompt in prompts:
                if self.config.sampling.is_greedy and not self._is_interrupted:
                    for index in settings[1:]:
                        self._texts.compare(index, prompt, settings[BASELINE])
                yield self._step("prompt")

    def _at_once(self, index: int, prompts: range, repeat: int) -> Iterator[Run | None]:
        """Yields the runs of prompts, as many at a time as the setting says; None for each that has none."""
        if not self._is_interrupted:
            self._doubts.check_alone(index % len(self.servers))
        with ThreadPoolExecutor(self._settings[index].concurrency) as pool:
            yield from pool.map(lambda prompt: self._run(index, prompt, repeat), prompts)

    def _run(self, index: int, prompt: int, repeat: int) -> Run | None:
        """Returns one run; None if the server failed, now or earlier, or the benchmark was interrupted.

        Raises:
            SpecgenError: The baseline failed.
        """
        number = index % len(self.servers)
        if self._is_interrupted or index in self._failures:
            return None
        try:
            try:
                return self._answered(index, prompt, repeat)
            except ServerBusyError:
                # Once more, and timed without the wait.
                self._doubts.note_retry(number)
                sleep(BUSY_SECONDS)
                return self._answered(index, prompt, repeat)
        except SpecgenError as error:
            if number == BASELINE:
                raise
            self._failures.setdefault(index, Failure(index, error.message))
            return None

    def _answered(self, index: int, prompt: int, repeat: int) -> Run | None:
        number = index % len(self.servers)
        server, started = self.servers[number], perf_counter() - self._start
        answer = ServedAnswer(server, self._request(prompt, server), self._info(server))
        answer.uses_own_clock = self._uses_own_clock
        self._answers.add(answer)
        if self._is_interrupted:  # since the last look
            answer.interrupt()
        try:
            for _ in answer:
                pass
        finally:
            self._answers.discard(answer)
        received, counts = answer.received, answer.counts
        if answer.finish_reason == "interrupted":
            return None
        self._doubts.add_acceptance(number, received.acceptance)
        if not counts.num_emitted or counts.tpot_seconds is None:
            raise ServerError(f"{server.client.address.host} does not say how many tokens it wrote")
        if received.server_seconds is None and not self._runs:
            self._uses_own_clock = True  # seen in the warm-up: from here on, one clock for all
        self._doubts.note(number, answer)
        self._texts.keep(index, prompt, answer.text)
        self._num_tokens[prompt] = received.num_prompt_tokens
        ended = perf_counter() - self._start
        return Run(index, prompt, repeat, counts, (), None, started, ended - started)

    def _request(self, prompt: int, server: Server) -> ChatRequest:
        values = sampling_fields(self.config.sampling, server)
        messages = [{"role": one.role, "content": one.content} for one in self.prompts[prompt].messages]
        ignores_eos = not self.config.stops_at_end and server.engine.has_ignore_eos
        return ChatRequest(messages, self.config.num_tokens, values, (), ignores_eos, self.fields)

    def _info(self, server: Server) -> RunInfo:
        return served_info(server, ReplySettings(self.config.sampling, "options", self.config.num_tokens))

    def report(self) -> BenchReport:
        """Returns what is known so far."""
        prompts = [
            Prompt(prompt.id, prompt.category, self._num_tokens.get(index, 0))
            for index, prompt in enumerate(self.prompts)
        ]
        return BenchReport(
            target=self._info(self.servers[BASELINE]).target,
            drafts={},
            settings=self._settings,
            prompts=tuple(prompts),
            config=self.config,
            runs=tuple(self._runs),
            differences=tuple(self._texts.differences.values()),
            compared=frozenset(self._texts.compared),
            failures=tuple(self._failures.values()),
            doubts=tuple(self._doubts.by_code.items()),
            environment=self.environment,
            is_complete=self._is_complete,
            is_out_of_time=self._is_out_of_time,
        )

    def _step(self, stage: Stage, run: Run | None = None) -> BenchStep:
        self._num_done += stage in ("warmup", "run")
        num_runs = max(self.config.num_warmups, 1) + len(self.prompts) * self.config.num_repeats
        return BenchStep(stage, self._num_done, len(self._settings) * num_runs, run)


def _setting(index: int, server: Server, concurrency: int) -> Setting:
    host = server.client.address.host
    if index == BASELINE:
        return Setting("none", label=f"(baseline) {host}", concurrency=concurrency)
    label = f"{server.facts.engine} {host}"
    return Setting("server", server.client.address.url, label, concurrency=concurrency)
