"""Runs speculative decoding: yields one event per round. Works on token ids only; text and terminals come later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Protocol

import torch

from specgen.core.errors import DraftError, MemoryShortageError, NumericalError
from specgen.core.events import Event, Finish, FinishReason, Notice, Prefill, Round
from specgen.core.settings import DecodeSettings, Verification
from specgen.engine.contract import TargetModel
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.base import (
    Drafter,
    Failure,
    NoDrafter,
    draft_errors,
    empty_draft,
    failure_notice,
    failure_of,
    release_after_failure,
    strict_error,
)
from specgen.engine.memory_errors import memory_errors
from specgen.engine.sampling import Sampler, likeliest_on_host, seen_rows, token_distributions
from specgen.engine.verification import Draft, verify

Clock = Callable[[], float]


class StopCheck(Protocol):
    """Ends the text at something other than a single token: a stop string."""

    def cut(self, ids: Sequence[int]) -> int | None:
        """Returns how many of these new tokens to keep; None keeps all. Called once per round, in order."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Controls one run of `decode`.

    Args:
        settings: Limits and the accept rule.
        draft_length: Decides the length of each draft, up to the settings' limit. None: always the limit.
        stop: A further end condition, called once per round.
        clock: Returns seconds; see `device_clock`.
    """

    settings: DecodeSettings
    draft_length: LengthPolicy | None = None
    stop: StopCheck | None = None
    clock: Clock = perf_counter


def device_clock(*devices: torch.device) -> Clock:
    """Returns a clock that first waits for the devices: a CUDA kernel still runs when its launch has returned."""
    cuda = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    if not cuda:
        return perf_counter

    def read() -> float:
        for device in cuda:
            torch.cuda.synchronize(device)
        return perf_counter()

    return read


def decode(
    target: TargetModel, drafter: Drafter, prompt_ids: Sequence[int], sampler: Sampler, options: DecodeOptions
) -> Iterator[Event]:
    """Generates text, one round at a time.

    Time is summed around the work, never across a `yield`: a slow reader does not change a figure. A reader that
    stops early closes the generator; the caches then hold a prefix of the text that was yielded.

    Args:
        target: Its cache must hold a prefix of `prompt_ids[:-1]`.
        drafter: Likewise. `NoDrafter` gives plain decoding.
        prompt_ids: At least one token.
        sampler: A `ModelDrafter` must have the same one.
        options: Limits, draft length, stop strings, clock.

    Yields:
        One `Prefill`, then `Round`s and `Notice`s, then one `Finish`.

    Raises:
        NumericalError: The target's logits contain NaN or infinity; the rounds before stay valid.
        MemoryShortageError: The target ran out of memory, and there was no draft to release.
        SpecgenError: The drafter failed and `strict` is set: of the cause's class, or `PairError`.
    """
    settings, clock = options.settings, options.clock
    draft_length = options.draft_length or FixedLength()
    ids = list(prompt_ids)
    prefill, failure = _prefill(target, drafter, ids, options)
    yield prefill
    num_left = settings.max_new_tokens
    index = 0
    reason: FinishReason | None = None
    while reason is None:
        if failure is not None:
            release_after_failure(drafter)
            if settings.strict:
                raise strict_error(failure) from failure
            notice = Notice("draft_dropped", failure_notice(failure))
            # The failure's traceback keeps the tensors of the failed pass alive.
            drafter, failure = NoDrafter(), None
            yield notice
        started = clock()
        draft_length.start_round()
        draft, failure = _propose(drafter, ids, min(settings.num_draft_tokens, num_left - 1), draft_length)
        if failure is not None:
            continue
        drafted_at = clock()
        try:
            with memory_errors():
                logits = target.logits(ids, draft.ids.shape[0] + 1, tail=draft.ids)
                verified_at = clock()
                draft_ids, num_accepted, target_id = _verify_draft(logits, ids, draft, sampler, settings.verification)
        except MemoryShortageError as error:
            logits = None  # frees the rows of the draft before the next try, which needs a single row
            target.rewind(min(len(ids) - 1, target.length))
            if settings.strict or isinstance(drafter, NoDrafter):
                raise
            # The draft's cache is released, and the same step runs again with a single token.
            failure = error
            continue
        tokens = [*draft_ids[:num_accepted], target_id]
        num_kept, ends = _cut(tokens, settings.end_ids, options.stop)
        is_cut = num_kept < len(tokens)
        ids += tokens[:num_kept]
        num_left -= num_kept
        failure = _rewind(target, drafter, len(ids) - 1)
        if ends or num_left == 0:
            reason = "stop" if ends else "length"
        round_ = Round(
            index=index,
            draft_ids=tuple(draft_ids[:num_kept] if is_cut else draft_ids),
            num_accepted=min(num_accepted, num_kept),
            target_id=None if is_cut else target_id,
            num_cut=len(draft_ids) - num_kept if is_cut else 0,
            draft_seconds=drafted_at - started,
            verify_seconds=verified_at - drafted_at,
            other_seconds=clock() - verified_at,
            source=draft.source if draft_ids else None,
        )
        draft_length.observe(round_)
        yield round_
        index += 1
    if failure is not None:  # in the rewind of the last round, which does not affect the text
        release_after_failure(drafter)
    yield Finish(reason)


def _prefill(
    target: TargetModel, drafter: Drafter, ids: list[int], options: DecodeOptions
) -> tuple[Prefill, Failure | None]:
    """Feeds all of the prompt except its last token, which the first round feeds.

    Returns:
        The event, and why the drafter can't be used, if it can't.

    Raises:
        MemoryShortageError: As in `decode`.
    """
    clock = options.clock
    num_reused = target.length
    started = clock()
    failure: Failure | None = None
    try:
        with memory_errors():
            target.feed(ids[:-1])
    except MemoryShortageError as error:
        if options.settings.strict or isinstance(drafter, NoDrafter):
            raise
        # A new error: the traceback of this one keeps the tensors of the failed pass alive.
        failure = MemoryShortageError(error.message, error.hint)
    if failure is not None:
        release_after_failure(drafter)
        num_reused = target.length
        with memory_errors():
            target.feed(ids[:-1])
    target_at = clock()
    if failure is None:
        failure = failure_of(lambda: drafter.feed(ids[:-1]))
    return Prefill(len(ids), num_reused, target_at - started, clock() - target_at), failure


def _propose(
    drafter: Drafter, ids: list[int], limit: int, draft_length: LengthPolicy
) -> tuple[Draft, DraftError | None]:
    if limit < 1:
        return empty_draft(), None
    try:
        with draft_errors():
            return drafter.propose(ids, limit, draft_length), None
    except DraftError as error:
        return empty_draft(), error


def _verify_draft(
    logits: torch.Tensor, ids: list[int], draft: Draft, sampler: Sampler, rule: Verification
) -> tuple[list[int], int, int]:
    """Applies the accept rule. Returns the draft's ids, how many of them are accepted, and the target's own token.

    Raises:
        NumericalError: The logits contain NaN or infinity.
    """
    settings = sampler.settings
    top = likeliest_on_host(logits) if settings.is_greedy and settings.repetition_penalty == 1.0 else None
    if top is None:
        num_accepted, target_id, is_finite, *draft_ids = _verify_on_device(logits, ids, draft, sampler, rule)
    else:
        num_accepted, target_id, is_finite, *draft_ids = _verify_greedy(*top, draft)
    if not is_finite:
        raise NumericalError(
            "the target's logits contain NaN or infinity",
            "try --dtype float32 or another --quant; the file may be damaged",
        )
    return draft_ids, num_accepted, target_id


def _verify_greedy(top_logits: list[float], top_ids: list[int], draft: Draft) -> list[int]:
    """Does what `_verify_on_device` does, for a greedy target in host memory.

    The twenty small torch operations it replaces took as long as a hundredth of a pass: each starts with a cache full
    of weights.
    """
    draft_ids = draft.ids.tolist()
    num_accepted = next((i for i, token in enumerate(draft_ids) if token != top_ids[i]), len(draft_ids))
    return [num_accepted, top_ids[num_accepted], all(map(isfinite, top_logits)), *draft_ids]


@torch.inference_mode()
def _verify_on_device(
    logits: torch.Tensor, ids: list[int], draft: Draft, sampler: Sampler, rule: Verification
) -> list[int]:
    """Verifies a draft with a single host read.

    Returns:
        The number of accepted tokens, the target's own token, 1 if all logits are finite, and the draft's ids.
    """
    draft = Draft(draft.ids.to(logits.device), None if draft.probs is None else draft.probs.to(logits.device))
    seen = seen_rows(ids, draft.ids, logits.shape[-1], sampler.settings, logits.device)
    noise = None if sampler.noise is None else sampler.noise.rows(len(ids), logits.shape[0])
    distributions = token_distributions(logits, sampler.settings, seen, noise)
    verdict = verify(distributions, draft, sampler.randomness, rule)
    decided = torch.stack([verdict.num_accepted, verdict.target_id, distributions.is_finite.long()])
    numbers: list[int] = torch.cat([decided, draft.ids]).tolist()
    return numbers


def _cut(tokens: Sequence[int], end_ids: frozenset[int], stop: StopCheck | None) -> tuple[int, bool]:
    """Returns how many of a round's new tokens to keep, and whether the text ends there."""
    num_to_end = next((i + 1 for i, token in enumerate(tokens) if token in end_ids), None)
    num_to_stop = None if stop is None else stop.cut(tokens[:num_to_end])
    num_kept = num_to_end if num_to_stop is None else num_to_stop
    return (len(tokens), False) if num_kept is None else (num_kept, True)


def _rewind(target: TargetModel, drafter: Drafter, length: int) -> DraftError | None:
    """Restores the cache rule: between rounds each cache holds a prefix of `ids[:-1]`. Returns the drafter's error."""
    target.rewind(min(length, target.length))
    return failure_of(lambda: drafter.rewind(length))
