"""Measures the costs of passes outside of any run: v(n) of the target, and the time of a draft token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from specgen.core.cost_model import MeasuredCosts
from specgen.core.errors import DraftError
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
    """Options of `measure_pass_costs`.

    Args:
        sampling: How the draft chooses its tokens.
        clock: Seconds; None: a clock that waits for the devices.
        is_interrupted: Called between passes; true ends the measurement with the samples so far.
        tree_nodes: Most tokens of a tree, by the label of drafts that branch.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    clock: Clock | None = None
    is_interrupted: Callable[[], bool] = lambda: False
    tree_nodes: Mapping[str, int] = field(default_factory=dict)


def measure_pass_costs(
    drafts: Mapping[str, LoadedModels],
    prompt_ids: Sequence[int],
    longest_draft: int,
    options: TimingOptions | None = None,
) -> MeasuredCosts:
    """Times passes over 1 to `longest_draft` + 1 tokens after a prompt, and draft tokens; returns medians.

    All lengths are timed once before any is timed again, alternately forwards and backwards, so that a machine that
    slows down does not bend the curve.

    Args:
        drafts: The models of each draft, by its label, all with the same target. At least one.
        prompt_ids: The tokens in the cache; a realistic number is best.
        longest_draft: Longest draft of interest.
        options: See `TimingOptions`.

    Returns:
        The costs, without those of drafts that failed.
    """
    options = options or TimingOptions()
    target = next(iter(drafts.values())).target
    read = options.clock or device_clock(*(device for models in drafts.values() for device in models.devices))
    for models in drafts.values():
        models.clear_caches()
    ids = list(prompt_ids)
    lengths = timed_lengths(longest_draft + 1)
    verify: dict[int, list[float]] = {n: [] for n in lengths}
    drafting: dict[str, list[DraftSample]] = {label: [] for label in drafts}
    target.feed(ids[:-1])
    num_warmups = num_warmup_passes(target, *(models.draft for models in drafts.values()))
    for number in range(NUM_SAMPLES + num_warmups):
        for n in lengths[:: -1 if number % 2 else 1]:
            if options.is_interrupted():
                return _medians(verify, drafting)
            started = read()
            target.logits([*ids, *[ids[-1]] * (n - 1)], n)
            seconds = read() - started
            target.rewind(len(ids) - 1)
            if number >= num_warmups:
                verify[n].append(seconds)
        for label in list(drafting):
            try:
                timer = DraftTimer(drafts[label], ids, options.sampling, read)
                sample = timer.sample(options.tree_nodes.get(label, 0))
            except DraftError:
                # Its runs will report the reason.
                del drafting[label]
                continue
            if number >= num_warmups:
                drafting[label].append(sample)
    for models in drafts.values():
        models.clear_caches()
    return _medians(verify, drafting)


def timed_lengths(longest: int) -> list[int]:
    """Returns the numbers of tokens of the passes that are timed, from 1 to `longest`."""
    is_step = {longest} | {n for n in range(1, longest) if n <= LONGEST_DENSE or n % 4 == 1 or n % GROUP_ROWS == 0}
    return sorted(is_step)


def _medians(verify: dict[int, list[float]], drafting: dict[str, list[DraftSample]]) -> MeasuredCosts:
    timed = {label: samples for label, samples in drafting.items() if samples}
    reading = {label: _medians_by_size([one.reading_seconds for one in samples]) for label, samples in timed.items()}
    trees = {label: _medians_by_size([one.tree_pass_seconds for one in samples]) for label, samples in timed.items()}
    return MeasuredCosts(
        {n: median(values) for n, values in verify.items() if values},
        {label: median(one.token_seconds for one in samples) for label, samples in timed.items()},
        {label: by_size for label, by_size in trees.items() if by_size},
        {label: by_size for label, by_size in reading.items() if by_size},
    )


def _medians_by_size(samples: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Returns the median of each size, at least 0."""
    sizes = sorted({size for one in samples for size in one})
    return {size: max(median(one[size] for one in samples if size in one), 0.0) for size in sizes}
