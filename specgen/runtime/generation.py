"""Generates one answer: yields events with their text, then reports on the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from specgen.core.baseline import Baseline
from specgen.core.comparison import first_difference
from specgen.core.cost_model import Forecast
from specgen.core.doubt import was_disturbed
from specgen.core.errors import MemoryShortageError, NumericalError
from specgen.core.events import Event, FinalText, Finish, FinishReason, Notice, Prefill, Round, RoundText, TextEvent
from specgen.core.metrics import Counts
from specgen.core.results import RunInfo, RunReport
from specgen.core.settings import BaselineMethod, DecodeSettings, SamplingSettings
from specgen.engine.clock import Clock, device_clock
from specgen.engine.contract import num_warmup_passes
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.loading.memory import peak_memory_bytes
from specgen.runtime import learned_costs
from specgen.runtime.drafting import end_of_drafts, no_trees_reason, with_trees
from specgen.text.detokenizer import Detokenizer
from specgen.text.stop_strings import StopStrings, with_text

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels

NUM_CALIBRATION_TOKENS = 8
"""Steps of the target alone that are timed for the quick baseline, after a warm-up step."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an answer is generated from.

    Args:
        prompt_ids: At least one token.
        sampling_source: Where the sampling settings come from, for the report.
        is_raw: The prompt is plain text, not a chat: the answer continues its last word.
        show_special_tokens: The text contains special tokens, as tool calls and the end token.
    """

    prompt_ids: Sequence[int]
    decode: DecodeSettings
    sampling: SamplingSettings
    sampling_source: str = "default"
    stops: tuple[str, ...] = ()
    is_raw: bool = False
    show_special_tokens: bool = False


class Generation:
    """Generates an answer: iterate over its events, then call `report`.

    After `interrupt()` the iteration ends with the round in progress. If the target fails, the iteration yields the
    final text and then raises, so that no generated text is lost.
    """

    def __init__(self, models: LoadedModels, request: Request) -> None:
        self.models = models
        is_asked_for = request.decode.num_tree_nodes > 0 and request.decode.tree_schedule != "default"
        decode_settings = with_trees(models, request.decode, is_greedy=request.sampling.is_greedy)
        self.request = request = replace(request, decode=decode_settings)
        self.info = run_info(models, request)
        self.counts = Counts()
        self.baseline: Baseline | None = None
        self.forecast: Forecast | None = None
        """What the pass costs predict; set together with the baseline."""
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason = "interrupted"
        self.stop_text: str | None = None
        self.clock = device_clock(*models.devices)
        """Times the rounds; may be replaced before the iteration."""
        self._notices = list(models.notices)
        if is_asked_for and (reason := no_trees_reason(models)) is not None:
            notice = f"--tree has no effect: {reason}"
            self._notices += [notice] if notice not in models.reported else []
            models.reported.add(notice)
        self._may_draft = bool(request.decode.num_draft_tokens) and models.pair.settings.drafter != "none"
        self._teaches_costs = not models.weighs_costs(request.decode)
        self.is_interrupted = False
        self._error: Exception | None = None
        self._started = perf_counter()
        self._ended = self._started

    def interrupt(self) -> None:
        """Ends the answer after the round in progress. Safe to call from a signal handler."""
        self.is_interrupted = True

    def __iter__(self) -> Iterator[TextEvent]:
        request, models = self.request, self.models
        self._started = perf_counter()
        models.reuse_prefix(request.prompt_ids)
        models.reserve(len(request.prompt_ids), request.decode.max_new_tokens)
        sampler = models.sampler(request.sampling)
        # Only a raw prompt is continued in the middle of a line; its last tokens decide about leading spaces.
        context = request.prompt_ids[-4:] if request.is_raw else ()
        backend = models.pair.tokenizer.backend_tokenizer
        detokenizer = Detokenizer(backend, context, skip_special_tokens=not request.show_special_tokens)
        # Without end ids, the length is requested.
        stops = (*request.stops, *(models.pair.defaults.stops if request.decode.end_ids else ()))
        stop = StopStrings(detokenizer.fork(), stops) if stops else None
        events = decode(
            models.target,
            models.drafter(sampler),
            request.prompt_ids,
            sampler,
            DecodeOptions(
                request.decode,
                draft_length=models.length_policy(request.decode),
                stop=stop,
                clock=self.clock,
            ),
        )
        for event in with_text(self._until_ended(events), detokenizer, stops):
            self._observe(event)
            yield event
        self.stop_text = None if stop is None else stop.matched
        self._ended = perf_counter()
        if self._error is not None:
            raise self._error

    def measure_baseline(self, method: BaselineMethod) -> Baseline | None:
        """Times the target alone on the same prompt, with the same loop; the caches are rewound to the prompt.

        Returns:
            None if there is nothing to compare (no drafter, no answer) or `method` is `off`.
        """
        if method == "off" or self.info.drafter == "none" or not self.counts.num_rounds or self._should_end():
            return None
        num_tokens = len(self.token_ids) if method == "full" else min(NUM_CALIBRATION_TOKENS, len(self.token_ids))
        num_uncounted = num_warmup_passes(self.models.target)
        if method == "full" and num_uncounted == 1:
            num_uncounted = 0
        request, models = self.request, self.models
        models.reuse_prefix(request.prompt_ids)
        counts = Counts()
        ids: list[int] = []
        steps = target_alone(models, request.prompt_ids, request.sampling, num_tokens + num_uncounted, self.clock)
        for event in steps:
            if isinstance(event, Round):
                ids += event.token_ids
                if event.index >= num_uncounted:
                    counts.observe(event)
                    if not event.is_warmup:
                        models.draft_length.costs.observe(1, event.verify_seconds)
            if self._should_end():
                return None
        compared = method == "full" and (request.sampling.is_greedy or request.sampling.same_text)
        difference = first_difference(ids[:num_tokens], self.token_ids) if compared else None
        self.forecast = learned_costs.predict(models, self.counts, counts)
        num_timed, seconds = counts.timed.num_tokens, counts.timed.seconds
        if method == "calibrate":
            # Rounds without a draft are steps of the target alone, too, measured during the run: with them, a machine
            # that was busier during the answer than after it does not look like a slowdown.
            num_timed += self.counts.num_timed_plain_rounds
            seconds += self.counts.plain_seconds
        self.baseline = Baseline(method, num_timed, seconds / num_timed, difference, compared)
        return self.baseline

    @property
    def first_notices(self) -> tuple[str, ...]:
        """Notices of loading the models."""
        return tuple(self.models.notices)

    @property
    def has_begun(self) -> bool:
        """Whether there is a round."""
        return self.counts.num_rounds > 0

    def finish(self) -> None:
        """Saves the measured costs of passes for later runs, unless other programs disturbed the timing."""
        if not was_disturbed(self.report()):
            learned_costs.save(self.models)

    def report(self) -> RunReport:
        """Returns what is known of the run so far; may be called at any time, also after an error."""
        return RunReport(
            info=self.info,
            counts=self.counts,
            text=self.text,
            finish_reason=self.finish_reason,
            total_seconds=self._ended - self._started,
            peak_memory_bytes=peak_memory_bytes(self.models.devices),
            baseline=self.baseline,
            forecast=self.forecast,
            stop_text=self.stop_text,
            token_ids=tuple(self.token_ids),
            notices=tuple(self._notices),
        )

    @property
    def notices(self) -> list[str]:
        """What the user should know about this answer; the notices of loading are not included."""
        return self._notices[len(self.models.notices) :]

    def _until_ended(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yields events up to an interruption or an error; both become a `Finish`."""
        try:
            for event in events:
                if isinstance(event, Round):
                    self.models.append(event.token_ids)
                yield event
                if self._may_draft and (notice := end_of_drafts(self.models)) is not None:
                    yield notice
                    self._may_draft = False
                if self._should_end() and not isinstance(event, Finish):
                    yield Finish("interrupted")
                    return
        except Exception as error:  # noqa: BLE001 - `__iter__` raises it after the final text
            self._error = error
            is_numerical, is_memory = isinstance(error, NumericalError), isinstance(error, MemoryShortageError)
            yield Finish("numerical" if is_numerical else "memory" if is_memory else "error")

    def _should_end(self) -> bool:
        """Returns whether `interrupt` was called; a method, because a signal handler may change it at any time."""
        return self.is_interrupted

    def _observe(self, event: TextEvent) -> None:
        if isinstance(event, Prefill):
            self.counts.observe_prefill(event)
        elif isinstance(event, RoundText):
            self.counts.observe(event.round)
            if self._teaches_costs:
                learned_costs.observe(self.models, event.round)
            self.token_ids += event.round.token_ids
            self.text += event.kept
        elif isinstance(event, Notice):
            self._notices.append(event.message)
        elif isinstance(event, FinalText):
            self.text += event.text
            self.finish_reason = event.finish.reason


def target_alone(
    models: LoadedModels,
    text_ids: Sequence[int],
    sampling: SamplingSettings,
    num_tokens: int,
    clock: Clock | None = None,
) -> Iterator[Event]:
    """Yields the events of the baseline: the same loop and weights without drafts, for exactly `num_tokens` tokens."""
    return decode(
        models.target,
        NoDrafter(),
        text_ids,
        models.sampler(sampling),
        DecodeOptions(DecodeSettings(num_tokens, num_draft_tokens=0), clock=clock or device_clock(*models.devices)),
    )


def run_info(models: LoadedModels, request: Request) -> RunInfo:
    """Returns what is known of an answer before its first token."""
    kind = models.pair.settings.drafter
    limits = with_trees(models, request.decode, is_greedy=request.sampling.is_greedy)
    return RunInfo(
        target=models.target_info,
        draft=models.draft_info,
        drafter=kind,
        num_draft_tokens=0 if kind == "none" else request.decode.num_draft_tokens,
        sampling=request.sampling,
        sampling_source=request.sampling_source,
        max_new_tokens=request.decode.max_new_tokens,
        load_seconds=models.load_seconds,
        schedule=request.decode.schedule,
        num_tree_nodes=limits.num_tree_nodes,
        tree_schedule="auto" if limits.tree_schedule == "auto" else "constant",
        batch_invariance=models.batch_invariance,
    )
