"""The loop: prompt ids in, one event per round out. Knows nothing of text or terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from time import perf_counter
from typing import Protocol

import torch

from specgen.core.errors import DraftError, MemoryShortageError, NumericalError
from specgen.core.events import Event, Finish, FinishReason, Notice, Prefill, Round
from specgen.core.settings import DecodeSettings, SamplingSettings, Verification
from specgen.engine.contract import TargetModel
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import LengthPolicy
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
from specgen.engine.randomness import PositionNoise, Randomness
from specgen.engine.sampling import likeliest_on_host, seen_rows, token_distributions
from specgen.engine.verification import Draft, verify

Clock = Callable[[], float]


class StopCheck(Protocol):
    """Ends the text at something that is no single token: a stop string."""

    def cut(self, ids: Sequence[int]) -> int | None:
        """How many of these next tokens to keep; None for all of them. Called once per round, in order."""


def device_clock(*devices: torch.device) -> Clock:
    """A clock that waits for the devices first: CUDA kernels run after the call that launched them returned."""
    cuda = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    if not cuda:
        return perf_counter

    def read() -> float:
        for device in cuda:
            torch.cuda.synchronize(device)
        return perf_counter()

    return read


def decode(
    target: TargetModel,
    drafter: Drafter,
    prompt_ids: Sequence[int],
    settings: DecodeSettings,
    sampling: SamplingSettings,
    randomness: Randomness,
    *,
    lengths: LengthPolicy | None = None,
    noise: PositionNoise | None = None,
    stop: StopCheck | None = None,
    clock: Clock = perf_counter,
) -> Iterator[Event]:
    """Generate, a round at a time.

    Time is summed around the work, never across a `yield`: a slow reader does not change a figure. Whoever stops
    reading early closes the generator; the caches then hold a prefix of the text that was yielded.

    Args:
        target: Its cache must hold a prefix of `prompt_ids[:-1]`.
        drafter: Likewise. `NoDrafter` gives plain decoding.
        prompt_ids: At least one token.
        lengths: Decides each draft's length, up to the settings' limit; default: always the limit.
        noise: Ties chance to positions; then `randomness` is not used. The drafter must have the same.
        stop: Further end condition, asked once per round.
        clock: Seconds; see `device_clock`.

    Yields:
        One `Prefill`, `Round`s, `Notice`s, and a `Finish`.

    Raises:
        NumericalError: The target's logits hold NaN or infinity; the rounds before stand.
        MemoryShortageError: Memory ran out in the target, and it had no draft to give up.
        SpecgenError: The drafter failed and `settings.strict` is set: of the cause's class, or `PairError`.
    """
    ids = list(prompt_ids)
    lengths = lengths or FixedLength()
    prefill, failure = _prefill(target, drafter, ids, settings, clock)
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
            # The failure goes, too: its traceback holds what the failed pass had computed.
            drafter, failure = NoDrafter(), None
            yield notice
        started = clock()
        lengths.start_round()
        draft, failure = _propose(drafter, ids, min(settings.num_draft_tokens, num_left - 1), lengths)
        if failure is not None:
            continue
        drafted_at = clock()
        try:
            with memory_errors():
                logits = target.logits(ids, draft.ids.shape[0] + 1, tail=draft.ids)
                verified_at = clock()
                draft_ids, num_accepted, target_id = _judge(
                    logits, ids, draft, sampling, randomness, noise, settings.verification
                )
        except MemoryShortageError as error:
            logits = None  # a draft's rows are several; the next try needs room for its one
            target.rewind(min(len(ids) - 1, target.length))
            if settings.strict or isinstance(drafter, NoDrafter):
                raise
            # The draft's cache is given back, and the same step tried once more with a single token.
            failure = error
            continue
        tokens = [*draft_ids[:num_accepted], target_id]
        num_kept, ends = _cut(tokens, settings.end_ids, stop)
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
        lengths.observe(round_)
        yield round_
        index += 1
    if failure is not None:  # in the last round's rewind, which cost the text nothing
        release_after_failure(drafter)
    yield Finish(reason)


def _prefill(
    target: TargetModel, drafter: Drafter, ids: list[int], settings: DecodeSettings, clock: Clock
) -> tuple[Prefill, Failure | None]:
    """Feed all of the prompt but its last token, which the first round feeds.

    Returns:
        What it took, and why the drafter can't be used, if that is so.

    Raises:
        MemoryShortageError: As in `decode`.
    """
    num_reused = target.length
    started = clock()
    failure: Failure | None = None
    try:
        with memory_errors():
            target.feed(ids[:-1])
    except MemoryShortageError as error:
        if settings.strict or isinstance(drafter, NoDrafter):
            raise
        # A new one: the traceback of this one holds what the failed pass had computed.
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


def _propose(drafter: Drafter, ids: list[int], limit: int, lengths: LengthPolicy) -> tuple[Draft, DraftError | None]:
    if limit < 1:
        return empty_draft(), None
    try:
        with draft_errors():
            return drafter.propose(ids, limit, lengths), None
    except DraftError as error:
        return empty_draft(), error


def _judge(
    logits: torch.Tensor,
    ids: list[int],
    draft: Draft,
    sampling: SamplingSettings,
    randomness: Randomness,
    noise: PositionNoise | None,
    rule: Verification,
) -> tuple[list[int], int, int]:
    """Apply the accept rule: the draft's ids, how many of them are accepted, and the target's own token.

    Raises:
        NumericalError: The logits hold NaN or infinity.
    """
    top = likeliest_on_host(logits) if sampling.is_greedy and sampling.repetition_penalty == 1.0 else None
    decided = _weigh(logits, ids, draft, sampling, randomness, noise, rule) if top is None else _match(*top, draft)
    num_accepted, target_id, is_finite, *draft_ids = decided
    if not is_finite:
        raise NumericalError(
            "the target's logits hold NaN or infinity",
            "try --dtype float32 or another --quant; the file may be damaged",
        )
    return draft_ids, num_accepted, target_id


def _match(top_logits: list[float], top_ids: list[int], draft: Draft) -> list[int]:
    """`_weigh` of a greedy target on this machine's own memory, where the twenty small operations of torch it takes
    cost as much as a hundredth of a pass: each begins in a cache that the pass has filled with weights."""
    draft_ids = draft.ids.tolist()
    num_accepted = next((i for i, token in enumerate(draft_ids) if token != top_ids[i]), len(draft_ids))
    return [num_accepted, top_ids[num_accepted], all(map(isfinite, top_logits)), *draft_ids]


@torch.inference_mode()
def _weigh(
    logits: torch.Tensor,
    ids: list[int],
    draft: Draft,
    sampling: SamplingSettings,
    randomness: Randomness,
    noise: PositionNoise | None,
    rule: Verification,
) -> list[int]:
    """Number of accepted tokens, the target's own token, whether all logits are sound, and the draft: one host read."""
    draft = Draft(draft.ids.to(logits.device), None if draft.probs is None else draft.probs.to(logits.device))
    seen = seen_rows(ids, draft.ids, logits.shape[-1], sampling, logits.device)
    rows = None if noise is None else noise.rows(len(ids), logits.shape[0])
    target_distributions = token_distributions(logits, sampling, seen, rows)
    verdict = verify(target_distributions, draft, randomness, rule)
    decided = torch.stack([verdict.num_accepted, verdict.target_id, target_distributions.is_finite.long()])
    found: list[int] = torch.cat([decided, draft.ids]).tolist()
    return found


def _cut(tokens: Sequence[int], end_ids: frozenset[int], stop: StopCheck | None) -> tuple[int, bool]:
    """Where the text ends among a round's new tokens: how many to keep, and whether it ends there."""
    num_kept = next((i + 1 for i, token in enumerate(tokens) if token in end_ids), None)
    num_stopped = None if stop is None else stop.cut(tokens[:num_kept])
    found = num_kept if num_stopped is None else num_stopped
    return (len(tokens), False) if found is None else (found, True)


def _rewind(target: TargetModel, drafter: Drafter, length: int) -> DraftError | None:
    """Keep the rule: between rounds each cache holds a prefix of `ids[:-1]`. Returns why the drafter could not."""
    target.rewind(min(length, target.length))
    return failure_of(lambda: drafter.rewind(length))
