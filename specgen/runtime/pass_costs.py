"""Measures the costs of passes outside of any run: v(n) of the target, and the time of a draft token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter
from typing import TYPE_CHECKING

from specgen.core.cost_model import MeasuredCosts
from specgen.core.errors import DraftError, SpecgenError
from specgen.core.settings import SamplingSettings
from specgen.engine.clock import Clock, device_clock
from specgen.engine.contract import num_warmup_passes
from specgen.runtime.draft_timing import DraftSample, DraftTimer

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels

NUM_SAMPLES = 5
LONGEST_DENSE = 9
"""Up to here every length is timed, since v(n) has steps there; beyond, every fourth."""
GROUP_ROWS = 16
"""Kernels compute so many rows at once, so v(n) has a step after them."""


@dataclass(frozen=True, slots=True)
class TimingOptions:
    """Options of a `PassTimer`.

    Args:
        sampling: How the draft chooses its tokens.
        clock: Seconds; None: a clock that waits for the devices.
        wall_clock: Seconds, for the share of the time that timing takes.
        is_interrupted: Called between passes; true ends the measurement with the samples so far.
        tree_nodes: Most tokens of a tree, by the label of drafts that branch.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    clock: Clock | None = None
    wall_clock: Clock = perf_counter
    is_interrupted: Callable[[], bool] = lambda: False
    tree_nodes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was timed in one turn.

    Args:
        verify_seconds: Passes of the target, by their tokens; over one token the mean of two passes.
        drafts: By the draft's label.
    """

    verify_seconds: Mapping[int, float]
    drafts: Mapping[str, DraftSample]


class PassTimer:
    """Times passes over 1 to `longest_draft` + 1 tokens after a prompt, and draft tokens.

    All lengths are timed once before any is timed again, alternately forwards and backwards, so that a machine that
    slows down does not bend the curve. Passes over one token are at both ends: within a turn, costs are taken in units
    of theirs, which halves the noise of a curve from 19 turns (3.1 to 1.7 % for v(8) on two cores of a Xeon).

    Args:
        drafts: The models of each draft, by its label, all with the same target. At least one.
        prompt_ids: The tokens in the cache; a realistic number is best.
        longest_draft: Longest draft of interest.
        options: See `TimingOptions`.
    """

    def __init__(
        self,
        drafts: Mapping[str, LoadedModels],
        prompt_ids: Sequence[int],
        longest_draft: int,
        options: TimingOptions | None = None,
    ) -> None:
        self._options = options or TimingOptions()
        self._drafts, self._ids = dict(drafts), list(prompt_ids)
        self._target = next(iter(drafts.values())).target
        devices = (device for models in drafts.values() for device in models.devices)
        self._read = self._options.clock or device_clock(*devices)
        self._lengths = timed_lengths(longest_draft + 1)
        self._labels = list(drafts)
        self._turns: list[_Turn] = []
        self._num_turns = 0
        self._first_end = self._seconds_since = self._turn_seconds = 0.0
        self._has_failed = False

    def sample(self, count: int) -> None:
        """Times everything `count` times. Leaves empty caches.

        The first time passes that take longer than later ones of their size are made before, and don't count.
        """
        models = (self._target, *(models.draft for models in self._drafts.values()))
        num_warmups = 0 if self._num_turns else num_warmup_passes(*models)
        started = self._options.wall_clock()
        self._clear_caches()
        self._target.feed(self._ids[:-1])
        for number in range(num_warmups + count):
            turn = self._turn()
            if number >= num_warmups and 1 in turn.verify_seconds:
                self._turns.append(turn)
            if self._options.is_interrupted():
                break
        self._clear_caches()
        if not self._first_end:
            self._first_end = self._options.wall_clock()
            self._turn_seconds = (self._first_end - started) / max(num_warmups + count, 1)

    def sample_again(self, share: float) -> None:
        """Times everything once more if calls of this take up to `share` of the time since the first timing.

        A machine that got slower or faster since then would bend a prediction of what ran meanwhile.
        """
        started = self._options.wall_clock()
        if self._has_failed or self._seconds_since + self._turn_seconds > share * (started - self._first_end):
            return
        try:
            self.sample(1)
        except SpecgenError:
            self._has_failed = True  # runs will report the reason
            self._clear_caches()
        self._turn_seconds = self._options.wall_clock() - started
        self._seconds_since += self._turn_seconds

    def costs(self) -> MeasuredCosts:
        """Returns the medians so far, without those of drafts that failed."""
        if not self._turns:
            return MeasuredCosts({}, {})
        step_seconds = median(turn.verify_seconds[1] for turn in self._turns)
        # A coarse clock may not advance in a pass.
        scaled = [(turn, step_seconds / (turn.verify_seconds[1] or step_seconds or 1.0)) for turn in self._turns]
        verify = _medians([(turn.verify_seconds, factor) for turn, factor in scaled])
        tokens, trees, reading, cold = {}, {}, {}, {}
        for label in self._labels:
            samples = [(turn.drafts[label], factor) for turn, factor in scaled if label in turn.drafts]
            if samples:
                tokens[label] = median(one.token_seconds * factor for one, factor in samples)
                trees[label] = _medians([(one.tree_pass_seconds, factor) for one, factor in samples])
                reading[label] = _medians([(one.reading_seconds, factor) for one, factor in samples])
                if reading[label]:  # lookup has no passes
                    cold[label] = max(median(one.cold_seconds * factor for one, factor in samples), 0.0)
        return MeasuredCosts(
            verify,
            tokens,
            {label: by_size for label, by_size in trees.items() if by_size},
            {label: by_size for label, by_size in reading.items() if by_size},
            cold,
        )

    def _turn(self) -> _Turn:
        """Times everything once; an interrupted turn lacks what comes later."""
        self._num_turns += 1
        passes: dict[int, list[float]] = {}
        for n in [*self._lengths, 1][:: 1 if self._num_turns % 2 else -1]:
            if self._options.is_interrupted():
                break
            started = self._read()
            self._target.logits([*self._ids, *[self._ids[-1]] * (n - 1)], n)
            passes.setdefault(n, []).append(self._read() - started)
            self._target.rewind(len(self._ids) - 1)
        drafts = {}
        for label in list(self._labels):
            if self._options.is_interrupted():
                break
            try:
                timer = DraftTimer(self._drafts[label], self._ids, self._options.sampling, self._read)
                drafts[label] = timer.sample(self._options.tree_nodes.get(label, 0))
            except DraftError:
                if not any(label in turn.drafts for turn in self._turns):
                    # Its runs will report the reason.
                    self._labels.remove(label)
        return _Turn({n: mean(seconds) for n, seconds in passes.items()}, drafts)

    def _clear_caches(self) -> None:
        for models in self._drafts.values():
            models.clear_caches()


def measure_pass_costs(
    drafts: Mapping[str, LoadedModels],
    prompt_ids: Sequence[int],
    longest_draft: int,
    options: TimingOptions | None = None,
) -> MeasuredCosts:
    """Measures costs at once; see `PassTimer` for the arguments."""
    timer = PassTimer(drafts, prompt_ids, longest_draft, options)
    timer.sample(NUM_SAMPLES)
    return timer.costs()


def timed_lengths(longest: int) -> list[int]:
    """Returns the numbers of tokens of the passes that are timed, from 1 to `longest`."""
    is_step = {longest} | {n for n in range(1, longest) if n <= LONGEST_DENSE or n % 4 == 1 or n % GROUP_ROWS == 0}
    return sorted(is_step)


def _medians(samples: Sequence[tuple[Mapping[int, float], float]]) -> dict[int, float]:
    """Returns the median of each size, at least 0; each sample is multiplied by its factor."""
    sizes = sorted({size for one, _ in samples for size in one})
    return {size: max(median(one[size] * by for one, by in samples if size in one), 0.0) for size in sizes}
