"""Benchmarks servers: every prompt on every server, in turn, against one without drafts. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from specgen.bench.prompts import BenchPrompt
from specgen.bench.results import (
    BASELINE,
    BenchReport,
    BenchSettings,
    BenchStep,
    Difference,
    Failure,
    Prompt,
    Run,
    Setting,
    Stage,
)
from specgen.core.errors import ServerError, SpecgenError
from specgen.core.results import LogitGap, RunInfo
from specgen.core.settings import ReplySettings
from specgen.runtime.served import ServedAnswer, first_character
from specgen.runtime.served_chat import sampling_fields, served_info
from specgen.servers.server import Server
from specgen.servers.values import ChatRequest, Json, part

NEAR_TIE = 0.25
"""Largest gap of two log-probabilities that rounding explains: two steps of bfloat16 at a logit of 16 to 32."""
MANY_ROUNDS = 20
"""From here on, a TAR of exactly 1 is more likely a fault of the counters than luck."""


@dataclass
class ServedBenchmark:
    """Asks every server every prompt, alternately forwards and backwards. Iterate for its steps.

    Args:
        servers: The one without drafts first.
        prompts: What to answer; of a conversation only the first turn.
        config: How to measure.
        fields: Further fields of every request.
        environment: Of this machine, for the report.
    """

    servers: Sequence[Server]
    prompts: Sequence[BenchPrompt]
    config: BenchSettings
    fields: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._runs: list[Run] = []
        self._texts: dict[tuple[int, int], str] = {}
        self._differences: dict[tuple[int, int], Difference] = {}
        self._compared: set[tuple[int, int]] = set()
        self._failures: list[Failure] = []
        self._doubts: dict[str, str] = {}
        self._num_tokens: dict[int, int] = {}
        # The clocks of different engines start at different events, so one clock of ours is used for all of them.
        self._uses_own_clock = len({server.facts.engine for server in self.servers}) > 1
        self._answer: ServedAnswer | None = None
        self._is_interrupted = self._is_complete = self._is_out_of_time = False
        self._num_done = 0
        self._start = perf_counter()

    def interrupt(self) -> None:
        """Ends the answer in progress, which does not count, and the benchmark. Safe in a signal handler."""
        self._is_interrupted = True
        if self._answer is not None:
            self._answer.interrupt()

    def __iter__(self) -> Iterator[BenchStep]:
        self._start = perf_counter()
        self._check_models()
        yield self._step("reading")
        # At least one, which shows whether all servers send their times.
        for _ in range(max(self.config.num_warmups, 1)):
            for index in range(len(self.servers)):
                if not self._is_interrupted:
                    self._run(index, 0, 0)
                    yield self._step("warmup")
        for repeat in range(self.config.num_repeats):
            if self._should_end():
                break
            yield from self._repeat(repeat)
            yield self._step("repeat")
        self._is_complete = not self._is_interrupted and not self._is_out_of_time
        yield self._step("end")

    def _should_end(self) -> bool:
        limit = self.config.time_limit_seconds
        self._is_out_of_time |= limit is not None and bool(self._runs) and perf_counter() - self._start > limit
        return self._is_interrupted or self._is_out_of_time

    def _repeat(self, repeat: int) -> Iterator[BenchStep]:
        for prompt in range(len(self.prompts)):
            if self._should_end():
                return
            step = -1 if (prompt + repeat) % 2 else 1
            for index in range(len(self.servers))[::step]:
                run = None if self._is_interrupted else self._run(index, prompt, repeat)
                if run is not None:
                    self._runs.append(run)
                yield self._step("run", run)
            if self.config.sampling.is_greedy and not self._is_interrupted:
                self._compare(prompt)
            yield self._step("prompt")

    def _run(self, index: int, prompt: int, repeat: int) -> Run | None:
        """Returns one run; None if the server failed, now or earlier, or the run was interrupted.

        Raises:
            SpecgenError: The baseline failed.
        """
        if any(failure.setting == index for failure in self._failures):
            return None
        server = self.servers[index]
        started, num_retried, num_others = perf_counter() - self._start, server.client.num_retried, server.num_running()
        answer = self._answer = ServedAnswer(server, self._request(prompt, server), self._info(server))
        answer.uses_own_clock = self._uses_own_clock
        try:
            for _ in answer:
                pass
            if not answer.counts.num_emitted or answer.counts.tpot_seconds is None:
                raise ServerError(f"{server.client.address.host} does not say how many tokens it wrote")
        except SpecgenError as error:
            if index == BASELINE:
                raise
            self._failures.append(Failure(index, error.message))
            return None
        finally:
            self._answer = None
        if answer.finish_reason == "interrupted":
            return None
        self._observe(index, answer, is_retried=server.client.num_retried > num_retried, num_others=num_others or 0)
        self._texts[index, prompt] = answer.text
        self._num_tokens[prompt] = answer.received.num_prompt_tokens
        return Run(index, prompt, repeat, answer.counts, (), None, started)

    def _observe(self, index: int, answer: ServedAnswer, *, is_retried: bool, num_others: int) -> None:
        """Notes what casts doubt on a run."""
        received, counts, host = answer.received, answer.counts, self.servers[index].client.address.host
        if received.server_seconds is None and not self._uses_own_clock and not self._runs:
            self._uses_own_clock = True  # seen in the warm-up: from here on, one clock for all
        if is_retried:
            self._doubts["retried"] = f"{host} refused requests of this benchmark at first"
        if num_others:
            self._doubts["not_alone"] = f"{host} served others at the same time"
        if self._uses_own_clock and received.num_pieces < counts.num_emitted - 1:
            self._doubts["merged_chunks"] = f"{host} sends several tokens at once, so times here are coarse"
        if counts.num_rounds > MANY_ROUNDS and counts.acceptance_rate == 1:
            self._doubts["perfect_acceptance"] = (
                f"{host} counts every draft token as accepted: its counters may be wrong"
            )

    def _check_models(self) -> None:
        names = [{one.facts.model, one.facts.root} - {""} for one in self.servers]
        for server, own in zip(self.servers, names, strict=True):
            if not own & names[BASELINE]:
                host = server.client.address.host
                self._doubts["different_models"] = f"{host} runs {server.facts.model}, not the baseline server's model"

    def _request(self, prompt: int, server: Server) -> ChatRequest:
        values = sampling_fields(self.config.sampling, server)
        messages = [{"role": one.role, "content": one.content} for one in self.prompts[prompt].messages]
        ignores_eos = not self.config.stops_at_end and server.engine.has_ignore_eos
        return ChatRequest(messages, self.config.num_tokens, values, (), ignores_eos, self.fields)

    def _info(self, server: Server) -> RunInfo:
        return served_info(server, ReplySettings(self.config.sampling, "options", self.config.num_tokens))

    def _compare(self, prompt: int) -> None:
        """Compares the texts of the servers with the baseline's."""
        own = self._texts.get((BASELINE, prompt))
        for index in range(1, len(self.servers)):
            other, key = self._texts.get((index, prompt)), (index, prompt)
            if own is None or other is None:
                continue
            self._compared.add(key)
            at = first_character(own, other)
            if at is not None and key not in self._differences:
                self._differences[key] = Difference(index, prompt, at, self._gap(prompt, at, other))

    def _gap(self, prompt: int, position: int, other: str) -> LogitGap:
        """Returns the gap of the baseline's two likeliest tokens where the texts part, if the second is the other's.

        Infinite if the server sends no log-probabilities.
        """
        server = self.servers[BASELINE]
        body = server.body(self._request(prompt, server), stream=False) | {"logprobs": True, "top_logprobs": 2}
        try:
            document, _ = server.complete(body)
        except SpecgenError:
            return LogitGap(math.inf, NEAR_TIE)
        start = 0
        for token in _tokens(document):
            text = token["token"]
            if start <= position < start + len(text):
                return LogitGap(_distance(token, other[start:]), NEAR_TIE)
            start += len(text)
        return LogitGap(math.inf, NEAR_TIE)

    def report(self) -> BenchReport:
        """Returns what is known so far."""
        prompts = [
            Prompt(prompt.id, prompt.category, self._num_tokens.get(index, 0))
            for index, prompt in enumerate(self.prompts)
        ]
        return BenchReport(
            target=self._info(self.servers[BASELINE]).target,
            drafts={},
            settings=tuple(_setting(index, server) for index, server in enumerate(self.servers)),
            prompts=tuple(prompts),
            config=self.config,
            runs=tuple(self._runs),
            differences=tuple(self._differences.values()),
            compared=frozenset(self._compared),
            failures=tuple(self._failures),
            doubts=tuple(self._doubts.items()),
            environment=self.environment,
            is_complete=self._is_complete,
            is_out_of_time=self._is_out_of_time,
        )

    def _step(self, stage: Stage, run: Run | None = None) -> BenchStep:
        self._num_done += stage in ("warmup", "run")
        num_runs = max(self.config.num_warmups, 1) + len(self.prompts) * self.config.num_repeats
        return BenchStep(stage, self._num_done, len(self.servers) * num_runs, run)


def _setting(index: int, server: Server) -> Setting:
    host = server.client.address.host
    if index == BASELINE:
        return Setting("none", label=f"(baseline) {host}")
    return Setting("server", server.client.address.url, f"{server.facts.engine} {host}")


def _tokens(document: Json) -> list[Json]:
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    content = part(choice, "logprobs").get("content")
    tokens = content if isinstance(content, list) else []
    return [one for one in tokens if isinstance(one, dict) and isinstance(one.get("token"), str)]


def _distance(token: Json, other: str) -> float:
    """Returns how much likelier the token is than the one that the other text begins with; infinite if unknown."""
    candidates = token.get("top_logprobs")
    own = token.get("logprob")
    for one in candidates if isinstance(candidates, list) else []:
        text, value = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
        is_other = isinstance(text, str) and text != token["token"] and text and other.startswith(text)
        if is_other and isinstance(value, (int, float)) and isinstance(own, (int, float)):
            return abs(own - value)
    return math.inf
