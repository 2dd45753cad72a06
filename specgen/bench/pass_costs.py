"""Loaded models in, what their passes cost out: v(n) of the target and a draft token's price, apart from any run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from specgen.bench.results import Costs
from specgen.core.errors import DraftError
from specgen.core.settings import SamplingSettings
from specgen.engine.decoding import Clock, device_clock
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.randomness import TorchRandomness
from specgen.loading.load import share_threads
from specgen.runtime.loaded_models import LoadedModels

NUM_SAMPLES = 5
DENSE = 9
"""Up to here every length is timed: v(n) has steps there. Beyond, every fourth."""
NUM_DRAFTED = 4
"""Draft tokens timed together: the first one of a draft also feeds what the draft model missed."""


def measure_costs(
    drafts: Mapping[str, LoadedModels],
    prompt_ids: Sequence[int],
    longest_draft: int,
    sampling: SamplingSettings,
    clock: Clock | None = None,
    wants_end: Callable[[], bool] = lambda: False,
) -> Costs:
    """Time passes over 1 to `longest_draft` + 1 tokens behind a prompt, and draft tokens; medians of several rounds.

    All lengths are timed in turn before any is timed again, forwards and backwards, so that a machine that slows down
    does not bend the curve.

    Args:
        drafts: A session for each draft, by its label; all of them over one target. At least one.
        prompt_ids: The context; a realistic length is best.
        longest_draft: Longest draft of interest.
        sampling: For the draft's own choice of tokens.
        clock: Seconds; default: one that waits for the devices.
        wants_end: Asked between passes; a true answer ends the measurement with what there is.

    Returns:
        The costs; a draft that fails has none.
    """
    loaded = list(drafts.values())
    target = loaded[0].target
    read = clock or device_clock(*(device for models in loaded for device in models.devices))
    for models in loaded:
        models.clear_caches()
    ids = list(prompt_ids)
    tail = [ids[-1]] * longest_draft
    lengths = [n for n in range(1, longest_draft + 2) if n <= DENSE or n % 4 == 1 or n == longest_draft + 1]
    verify: dict[int, list[float]] = {n: [] for n in lengths}
    drafting: dict[str, list[float]] = {label: [] for label in drafts}
    catching_up: dict[str, list[float]] = {label: [] for label in drafts}
    working = dict(drafts)
    target.feed(ids[:-1])
    for sample in range(NUM_SAMPLES + 1):  # the first one warms up
        for n in sorted(verify, reverse=sample % 2 == 1):
            if wants_end():
                return _medians(verify, drafting, catching_up)
            started = read()
            target.logits([*ids, *tail[: n - 1]], n)
            seconds = read() - started
            target.rewind(len(ids) - 1)
            if sample:
                verify[n].append(seconds)
        for label, models in list(working.items()):
            try:
                seconds, more = _draft_seconds(models, ids, sampling, read)
            except DraftError:
                # Its runs will tell why.
                del working[label], drafting[label], catching_up[label]
                continue
            if sample:
                drafting[label].append(seconds)
                catching_up[label].append(more)
    for models in loaded:
        models.clear_caches()
    return _medians(verify, drafting, catching_up)


def _draft_seconds(
    models: LoadedModels, ids: list[int], sampling: SamplingSettings, read: Clock
) -> tuple[float, float]:
    """One draft token, or for lookup one proposal; and how much more it takes with one more token to read first."""
    share_threads(models.target, models.draft)
    drafter = models.drafter(sampling, TorchRandomness(sampling.seed, models.target.device))
    if isinstance(drafter, CombinedDrafter):
        drafter = drafter.model

    def seconds(num_fed: int, num_drafted: int) -> float:
        drafter.rewind(num_fed)
        drafter.feed(ids[:num_fed])
        started = read()
        drafter.propose(ids, num_drafted, FixedLength())
        return read() - started

    drafter.feed(ids[:-1])
    whole = seconds(len(ids) - 1, NUM_DRAFTED)
    if models.draft is None:
        return whole, 0.0
    more = seconds(len(ids) - 2, 1) - seconds(len(ids) - 1, 1) if len(ids) > 1 else 0.0
    drafter.rewind(len(ids) - 1)
    return whole / NUM_DRAFTED, more


def _medians(
    verify: Mapping[int, Sequence[float]],
    drafting: Mapping[str, Sequence[float]],
    catching_up: Mapping[str, Sequence[float]],
) -> Costs:
    return Costs(
        {n: median(values) for n, values in verify.items() if values},
        {label: median(values) for label, values in drafting.items() if values},
        {label: max(median(values), 0.0) for label, values in catching_up.items() if values},
    )
