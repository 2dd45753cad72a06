"""Sessions and prompts in, a report that grows run by run out. Measures; judges and prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

from specgen.bench.configurations import Configuration
from specgen.bench.pass_costs import measure_costs
from specgen.bench.peak_memory import PeakMemory
from specgen.bench.prompts import BenchPrompt
from specgen.bench.results import BASELINE, BenchReport, BenchSettings, Costs, Failure, Prompt, Run, Stage, Step
from specgen.bench.text_comparison import Comparison
from specgen.bench.time_limit import TimeBudget
from specgen.core.errors import SpecgenError
from specgen.core.settings import MAX_DRAFT_TOKENS, DecodeSettings
from specgen.engine.decoding import Clock
from specgen.loading.load import share_threads
from specgen.runtime.generation import Generation, Request
from specgen.text.chat_template import Message, encode_messages, encode_text

NUM_CONTEXT_TOKENS = 256
"""Prompt tokens behind which passes are timed for the prediction."""
SLOWEST_CURVE = 17
"""Longest pass that is timed; v(n) for `auto` needs no more."""


class Benchmark:
    """Runs every prompt in every setting, in turn: iterate for its steps, ask for its report at any time.

    Within a prompt the settings follow each other, forwards and backwards by turns: what changes slowly over the run
    (heat, other programs) reaches all settings alike. Caches are emptied before every run, so that each reads its
    whole prompt and no run sees numbers another one left.

    Args:
        lanes: The target alone first; the lanes of a second engine behind all of the first one's, likewise.
        prompts: What to answer.
        config: How to measure.
        raw: Prompts are continued as they are, without a chat template.
        template: Jinja source instead of the model's own chat template.
        clock: Seconds, for tests; default: the engine's own.
        wall: Seconds for the time budget.
        environment: For the report.

    Raises:
        PromptError: A prompt does not fit the target's window.
    """

    def __init__(
        self,
        lanes: Sequence[Configuration],
        prompts: Sequence[BenchPrompt],
        config: BenchSettings,
        *,
        raw: bool = False,
        template: str | None = None,
        clock: Clock | None = None,
        wall: Clock = perf_counter,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.lanes = list(lanes)
        self.config = config
        self._pair = lanes[BASELINE].models.pair
        self._alone = [index for index, lane in enumerate(lanes) if lane.setting.drafter == "none"]
        self._raw, self._template = raw, template
        self._clock, self._budget = clock, TimeBudget(config.budget_seconds, wall)
        self._prompts = list(prompts)
        # Known before anything is timed: an error at the hundredth run would come late.
        self._prompt_ids = [self._encode(prompt.messages) for prompt in prompts]
        self._shapes = [Prompt(p.id, p.category, len(ids)) for p, ids in zip(prompts, self._prompt_ids, strict=True)]
        self._environment = dict(environment or {})
        self._runs: list[Run] = []
        alone = [(i, lanes[i].models) for i in self._alone]
        self._comparisons = [Comparison(one.target, one.target_info, config.sampling, i) for i, one in alone]
        self._failures: list[Failure] = []
        self._costs: Costs | None = None
        self._num_done = 0
        self._is_complete = False
        self._is_interrupted = False
        self._current: Generation | None = None

    def interrupt(self) -> None:
        """End after the round in progress; the run it belongs to does not count. Safe in a signal handler."""
        self._is_interrupted = True
        if self._current is not None:
            self._current.interrupt()

    @property
    def num_steps(self) -> int:
        """Runs in all, warm-up among them."""
        config = self.config
        return len(self.lanes) * (config.num_warmups + len(self._prompt_ids) * config.num_repeats)

    def __iter__(self) -> Iterator[Step]:
        self._budget.begin()
        self._answer_earlier_turns()
        yield self._step("reading")
        if self.config.probes_costs and not self._is_interrupted:
            self._costs = self._measure_costs()
            yield self._step("costs")
        for _ in range(self.config.num_warmups):
            for lane in range(len(self.lanes)):
                if not self._is_interrupted:
                    self._try_run(lane, 0, 0)
                    yield self._step("warmup")
        self._budget.begin_repeats()
        for repeat in range(self.config.num_repeats):
            if self._is_interrupted or not self._budget.allows_repeat(repeat):
                break
            yield from self._repeat(repeat)
            yield self._step("repeat")
        self._is_complete = not self._is_interrupted and not self._budget.is_spent
        yield self._step("end")

    def _repeat(self, repeat: int) -> Iterator[Step]:
        for prompt in range(len(self._prompt_ids)):
            if prompt and not self._budget.allows_prompt():
                return
            order = list(range(len(self.lanes)))
            # By turns within a repeat, and for each prompt by turns from repeat to repeat.
            if (prompt + repeat) % 2:
                order.reverse()
            finished: list[Run] = []
            for lane in order:
                if self._is_interrupted:
                    break
                run = self._try_run(lane, prompt, repeat)
                if run is not None:
                    self._runs.append(run)
                    finished.append(run)
                yield self._step("run", run)
            for comparison in self._comparisons:
                own = [run for run in finished if self._engine(run.setting) == self._engine(comparison.alone)]
                comparison.observe(own, self._prompt_ids[prompt])
            if self._is_interrupted:
                return
            yield self._step("prompt")

    def report(self) -> BenchReport:
        """What is known so far."""
        baseline = self.lanes[BASELINE].models
        drafts = {
            lane.setting.label: lane.models.draft_info for lane in self.lanes if lane.models.draft_info is not None
        }
        return BenchReport(
            target=baseline.target_info,
            drafts=drafts,
            settings=tuple(lane.setting for lane in self.lanes),
            prompts=tuple(self._shapes),
            config=self.config,
            runs=tuple(self._runs),
            differences=tuple(found for comparison in self._comparisons for found in comparison.differences),
            compared=frozenset(pair for comparison in self._comparisons for pair in comparison.compared),
            costs=self._costs,
            failures=tuple(self._failures),
            notices=tuple(dict.fromkeys(notice for lane in self.lanes for notice in lane.models.notices)),
            environment=self._environment,
            is_complete=self._is_complete,
            is_out_of_time=self._budget.is_spent,
            other_target=self.lanes[self._alone[1]].models.target_info if len(self._alone) > 1 else None,
        )

    def _engine(self, lane: int) -> str:
        return self.lanes[lane].setting.backend

    def _step(self, stage: Stage, run: Run | None = None) -> Step:
        self._num_done += stage in ("warmup", "run")
        return Step(stage, self._num_done, self.num_steps, run)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        if self._raw:
            ids = encode_text(self._pair.tokenizer, "\n\n".join(message.content for message in messages))
        else:
            ids = encode_messages(self._pair.tokenizer, messages, template=self._template)
        for lane in self._alone:
            self.lanes[lane].models.pair.resolve_max_new_tokens(
                len(ids), self.config.num_tokens, self.config.num_tokens
            )
        return ids

    def _answer_earlier_turns(self) -> None:
        """Make a prompt of every later turn: the target answers those before it, untimed and with its end token."""
        shapes, ids = [], []
        for prompt, shape, first_ids in zip(self._prompts, self._shapes, self._prompt_ids, strict=True):
            messages = list(prompt.messages)
            shapes.append(shape)
            ids.append(first_ids)
            turn_ids = first_ids
            for number, turn in enumerate(prompt.later_turns, 2):
                if self._is_interrupted:
                    break
                reply = self._current = self._generation(BASELINE, turn_ids, stops=True)
                try:
                    for _ in reply:
                        pass
                finally:
                    self._current = None
                if reply.finish_reason == "interrupted":
                    break
                messages += [Message("assistant", reply.text), Message("user", turn)]
                turn_ids = self._encode(messages)
                ids.append(turn_ids)
                shapes.append(Prompt(f"{prompt.id}.{number}", prompt.category, len(turn_ids)))
        self._shapes, self._prompt_ids = shapes, ids

    def _measure_costs(self) -> Costs:
        own = [lane for lane in self.lanes if lane.setting.backend == self._engine(BASELINE)]
        lanes = own[1:] or own
        drafts = {lane.setting.label: lane.models for lane in lanes}
        longest = max(min(lane.setting.num_draft_tokens, MAX_DRAFT_TOKENS) for lane in lanes)
        context = max(self._prompt_ids, key=len)[:NUM_CONTEXT_TOKENS]
        return measure_costs(
            drafts,
            context,
            min(longest, SLOWEST_CURVE - 1),
            self.config.sampling,
            self._clock,
            lambda: self._is_interrupted,
        )

    def _generation(self, lane: int, prompt_ids: Sequence[int], *, stops: bool) -> Generation:
        setting, models = self.lanes[lane].setting, self.lanes[lane].models
        models.clear_caches()
        share_threads(models.target, models.draft)
        end_ids = self._pair.end_ids if stops else frozenset[int]()
        limits = DecodeSettings(
            self.config.num_tokens, setting.num_draft_tokens, setting.schedule, end_ids, strict=True
        )
        generation = Generation(models, Request(prompt_ids, limits, self.config.sampling))
        if self._clock is not None:
            generation.clock = self._clock
        return generation

    def _try_run(self, lane: int, prompt: int, repeat: int) -> Run | None:
        """One run; None if the setting is broken or the run was interrupted. A broken target ends everything.

        Raises:
            SpecgenError: The target alone failed.
        """
        if any(failure.setting == lane for failure in self._failures):
            return None
        models = self.lanes[lane].models
        memory = PeakMemory(models.devices)
        memory.begin()
        generation = self._generation(lane, self._prompt_ids[prompt], stops=self.config.stops_at_end)
        self._current = generation
        started = self._budget.elapsed_seconds
        try:
            for _ in generation:
                pass
        except SpecgenError as error:
            if lane == BASELINE:
                raise
            self._failures.append(Failure(lane, error.message))
            return None
        finally:
            self._current = None
        if generation.finish_reason == "interrupted":
            return None
        ids, peak = tuple(generation.token_ids), self._own_part(memory, lane)
        return Run(lane, prompt, repeat, generation.counts, ids, peak, started)

    def _own_part(self, memory: PeakMemory, lane: int) -> int | None:
        """Peak of a run, less the weights that only wait for their turn."""
        peak = memory.read()
        if peak is None:
            return None
        others = {id(other.models.draft): other.setting.num_draft_bytes for other in self.lanes}
        others |= {id(other.models.target): other.models.target_info.num_bytes for other in self.lanes}
        for model in (self.lanes[lane].models.target, self.lanes[lane].models.draft):
            others.pop(id(model), None)
        return max(peak - sum(others.values()), 0)
