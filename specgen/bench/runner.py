"""Runs a benchmark: every prompt in every configuration, in turn. It measures; it judges and prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

from specgen.bench.configurations import Configuration, Host, PeakMemory
from specgen.bench.peers import Peer, PeerRequest, answered
from specgen.bench.results import BASELINE, BenchReport, BenchSettings, BenchStep, Failure, Prompt, Run, Stage
from specgen.bench.text_comparison import TextComparison
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.runtime.drafting import no_trees_reason
from specgen.runtime.generation import Generation, Request
from specgen.runtime.pass_costs import NUM_SAMPLES, PassTimer, TimingOptions
from specgen.text.chat_template import Message
from specgen.text.prompts import PromptEntry, PromptFormat

NUM_CONTEXT_TOKENS = 256
"""Prompt tokens in the cache while passes are timed for the prediction."""
LONGEST_TIMED_PASS = 17
"""v(n) of longer passes is not needed for `auto`."""
TIMING_SHARE = 0.03
"""Largest share of the time of the runs in which passes are timed again, between prompts."""


class Benchmark:
    """Runs every prompt in every configuration. Iterate for its steps; `report` may be called at any time.

    Within a prompt the configurations run in turn, alternately forwards and backwards: slow changes of the machine
    (heat, other programs) then affect all of them alike. Caches are emptied before every run, so that each run reads
    its whole prompt and sees nothing that another run computed.

    Args:
        configurations: The baseline first. Those of a second backend follow all of the first one's, likewise.
        prompts: What to answer.
        config: How to measure.
        prompt_format: How prompts become token ids.
        host: Where it runs.

    Raises:
        PromptError: A prompt does not fit the target's context window.
    """

    def __init__(
        self,
        configurations: Sequence[Configuration],
        prompts: Sequence[PromptEntry],
        config: BenchSettings,
        *,
        prompt_format: PromptFormat | None = None,
        host: Host | None = None,
    ) -> None:
        self.configurations = list(configurations)
        self.config = config
        self._settings = [one.setting for one in configurations]
        self._peers: list[Peer] = []
        self._pair = configurations[BASELINE].models.pair
        self._baselines = [i for i, one in enumerate(configurations) if one.setting.drafter == "none"]
        self._prompt_format, self._host = prompt_format or PromptFormat(), host or Host()
        self._start = 0.0
        self._is_out_of_time = False
        self._conversations = list(prompts)
        # Encoded before anything is timed: an error at the hundredth run would come late.
        self._prompt_ids = [self._encode(prompt.messages) for prompt in prompts]
        self._prompts = [Prompt(p.id, p.category, len(ids)) for p, ids in zip(prompts, self._prompt_ids, strict=True)]
        self._runs: list[Run] = []
        baselines = [(index, configurations[index].models) for index in self._baselines]
        self._comparisons = [
            TextComparison(models.target, models.target_info, config.sampling, index) for index, models in baselines
        ]
        self._failures: list[Failure] = []
        self._timer: PassTimer | None = None
        self._num_done = 0
        self._is_complete = False
        self._is_interrupted = False
        self._generation: Generation | None = None

    def add_peers(self, peers: Sequence[Peer]) -> None:
        """Measures other programs, too: they take their turn after the configurations."""
        self._peers += peers
        self._settings += [peer.setting for peer in peers]

    def interrupt(self) -> None:
        """Ends after the round in progress; the run it belongs to does not count. Safe in a signal handler."""
        self._is_interrupted = True
        if self._generation is not None:
            self._generation.interrupt()

    def __iter__(self) -> Iterator[BenchStep]:
        self._start = self._host.wall_clock()
        self._answer_earlier_turns()
        yield self._step("reading")
        if self.config.times_passes and not self._is_interrupted:
            self._timer = self._pass_timer()
            self._timer.sample(NUM_SAMPLES)
            yield self._step("costs")
        for _ in range(self.config.num_warmups):
            for index in range(len(self._settings)):
                if not self._is_interrupted:
                    self._run(index, 0, 0)
                    yield self._step("warmup")
        repeats_start = self._elapsed_seconds()
        for repeat in range(self.config.num_repeats):
            if self._is_interrupted or not self._has_time_for_repeat(repeat, repeats_start):
                break
            yield from self._repeat(repeat)
            yield self._step("repeat")
        self._is_complete = not self._is_interrupted and not self._is_out_of_time
        yield self._step("end")

    def report(self) -> BenchReport:
        """Returns what is known so far."""
        every = self.configurations
        others = [every[index].models.target_info for index in self._baselines[1:]]
        return BenchReport(
            target=every[BASELINE].models.target_info,
            drafts={one.setting.label: one.models.draft_info for one in every if one.models.draft_info is not None},
            settings=tuple(self._settings),
            prompts=tuple(self._prompts),
            config=self.config,
            runs=tuple(self._runs),
            differences=tuple(item for comparison in self._comparisons for item in comparison.differences),
            compared=frozenset(key for comparison in self._comparisons for key in comparison.compared),
            costs=None if self._timer is None else self._timer.costs(),
            failures=tuple(self._failures),
            notices=tuple(dict.fromkeys(notice for one in every for notice in one.models.notices)),
            environment=self._host.environment,
            is_complete=self._is_complete,
            is_out_of_time=self._is_out_of_time,
            other_target=others[0] if others else None,
        )

    def _step(self, stage: Stage, run: Run | None = None) -> BenchStep:
        self._num_done += stage in ("warmup", "run")
        num_runs = self.config.num_warmups + len(self._prompt_ids) * self.config.num_repeats
        return BenchStep(stage, self._num_done, len(self._settings) * num_runs, run)

    def _elapsed_seconds(self) -> float:
        return self._host.wall_clock() - self._start

    def _has_time_for_repeat(self, num_done: int, start_seconds: float) -> bool:
        """Returns whether another repeat, as long as those since `start_seconds`, would end in time."""
        limit = self.config.time_limit_seconds
        if limit is not None and num_done:
            elapsed = self._elapsed_seconds()
            self._is_out_of_time |= elapsed + (elapsed - start_seconds) / num_done > limit
        return not self._is_out_of_time

    def _repeat(self, repeat: int) -> Iterator[BenchStep]:
        for prompt in range(len(self._prompt_ids)):
            limit = self.config.time_limit_seconds
            self._is_out_of_time |= limit is not None and prompt > 0 and self._elapsed_seconds() > limit
            if self._is_out_of_time:
                return
            if self._timer and self._runs:
                self._timer.sample_again(TIMING_SHARE)
            # The direction alternates from prompt to prompt and, for each prompt, from repeat to repeat.
            step = -1 if (prompt + repeat) % 2 else 1
            num_before = len(self._runs)
            for index in range(len(self._settings))[::step]:
                if self._is_interrupted:
                    break
                run = self._run(index, prompt, repeat)
                if run is not None:
                    self._runs.append(run)
                yield self._step("run", run)
            finished = self._runs[num_before:]
            for comparison in self._comparisons:
                own = [run for run in finished if self._is_compared(run.setting, comparison.baseline)]
                comparison.observe(own, self._prompt_ids[prompt])
            if self._is_interrupted:
                return
            yield self._step("prompt")

    def _is_compared(self, index: int, baseline: int) -> bool:
        """Returns whether the text of a setting is to be that of a baseline."""
        if index >= len(self.configurations):
            return baseline == BASELINE and self._peers[index - len(self.configurations)].has_target_weights
        return self._backend(index) == self._backend(baseline)

    def _backend(self, index: int) -> str:
        return self.configurations[index].setting.backend

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        ids = self._prompt_format.encode(self._pair.tokenizer, messages)
        for index in self._baselines:
            pair = self.configurations[index].models.pair
            pair.resolve_max_new_tokens(len(ids), self.config.num_tokens, self.config.num_tokens)
        return ids

    def _answer_earlier_turns(self) -> None:
        """Makes a prompt of every later turn: the target answers the turns before it, untimed, up to its end token."""
        prompts, all_ids = [], []
        for conversation, prompt, ids in zip(self._conversations, self._prompts, self._prompt_ids, strict=True):
            messages = list(conversation.messages)
            prompts.append(prompt)
            all_ids.append(ids)
            for number, turn in enumerate(conversation.later_turns, 2):
                reply = None if self._is_interrupted else self._generate(BASELINE, all_ids[-1], stops_at_end=True)
                if reply is None or reply.finish_reason == "interrupted":
                    break
                messages += [Message("assistant", reply.text), Message("user", turn)]
                all_ids.append(self._encode(messages))
                prompts.append(Prompt(f"{prompt.id}.{number}", prompt.category, len(all_ids[-1])))
        self._prompts, self._prompt_ids = prompts, all_ids

    def _pass_timer(self) -> PassTimer:
        own = [one for one in self.configurations if one.setting.backend == self._backend(BASELINE)]
        timed = own[1:] or own
        longest = max(max(one.setting.num_draft_tokens, one.setting.num_tree_nodes) for one in timed)
        by_size = sorted(timed, key=lambda one: one.setting.num_tree_nodes)
        tree_nodes = {one.setting.label: one.setting.num_tree_nodes for one in by_size}
        clocks = self._host.clock, self._host.wall_clock
        options = TimingOptions(self.config.sampling, *clocks, lambda: self._is_interrupted, tree_nodes)
        ids = max(self._prompt_ids, key=len)[:NUM_CONTEXT_TOKENS]
        longest = min(longest, MAX_DRAFT_TOKENS, LONGEST_TIMED_PASS - 1)
        return PassTimer({one.setting.label: one.models for one in timed}, ids, longest, options)

    def _generate(self, index: int, prompt_ids: Sequence[int], *, stops_at_end: bool) -> Generation:
        """Runs one generation to its end, or until `interrupt`."""
        models = self.configurations[index].models
        models.clear_caches()
        models.limit_torch_threads()
        end_ids = self._pair.end_ids if stops_at_end else frozenset[int]()
        decoding = self.configurations[index].decode_settings(self.config.num_tokens, end_ids)
        if decoding.num_tree_nodes and (reason := no_trees_reason(models)) is not None:
            raise SettingsError(f"--tree has no effect: {reason}", "give --tree off")
        generation = Generation(models, Request(prompt_ids, decoding, self.config.sampling))
        if self._host.clock is not None:
            generation.clock = self._host.clock
        self._generation = generation
        try:
            for _ in generation:
                pass
        finally:
            self._generation = None
        return generation

    def _run(self, index: int, prompt: int, repeat: int) -> Run | None:
        """Returns one run; None if its configuration failed, now or earlier, or the run was interrupted.

        Raises:
            SpecgenError: The baseline failed.
        """
        if any(failure.setting == index for failure in self._failures):
            return None
        started = self._elapsed_seconds()
        try:
            if index >= len(self.configurations):
                return self._run_peer(index, prompt, repeat)
            memory = PeakMemory(self.configurations, self.configurations[index])
            generation = self._generate(index, self._prompt_ids[prompt], stops_at_end=self.config.stops_at_end)
        except SpecgenError as error:
            if index == BASELINE:
                raise
            self._failures.append(Failure(index, error.message))
            return None
        if generation.finish_reason == "interrupted":
            return None
        return Run(index, prompt, repeat, generation.counts, tuple(generation.token_ids), memory.read(), started)

    def _run_peer(self, index: int, prompt: int, repeat: int) -> Run | None:
        """Does what `_run` does, for a peer."""
        started = self._elapsed_seconds()
        end_ids = self._pair.end_ids if self.config.stops_at_end else frozenset[int]()
        clock, ids = self._host.clock or perf_counter, self._prompt_ids[prompt]
        request = PeerRequest(ids, self.config.num_tokens, end_ids, clock, lambda: self._is_interrupted)
        answer = answered(self._peers[index - len(self.configurations)], request)
        if self._is_interrupted:
            return None
        return Run(index, prompt, repeat, answer.counts, tuple(answer.token_ids), None, started)
