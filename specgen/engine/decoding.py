"""Runs speculative decoding: yields one event per round. Works on token ids only; text and terminals come later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from specgen.core.errors import DraftError, MemoryShortageError
from specgen.core.events import Event, Finish, FinishReason, Notice, Prefill, Round
from specgen.core.settings import DecodeSettings
from specgen.engine.clock import Clock, stopwatch_of
from specgen.engine.contract import RecordingModel, SwitchingModel, TargetModel, rows_in_one_pass
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
from specgen.engine.sampling import Sampler
from specgen.engine.target_pass import TargetPass
from specgen.engine.verification import Draft


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
        clock: See `specgen.engine.clock.device_clock`.
    """

    settings: DecodeSettings
    draft_length: LengthPolicy | None = None
    stop: StopCheck | None = None
    clock: Clock = perf_counter


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
    settings, stopwatch = options.settings, stopwatch_of(options.clock)
    draft_length = options.draft_length or FixedLength()
    target_pass = TargetPass(target, sampler, settings.verification, stopwatch, len(prompt_ids))
    # Once, not per round: a check against a protocol looks up each of its methods.
    recording = target if isinstance(target, RecordingModel) else None
    switching = target if isinstance(target, SwitchingModel) else None
    ids = list(prompt_ids)
    prefill, failure = _prefill(target, drafter, ids, options)
    draft_length.start_text(prefill)
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
        if recording is not None and (message := recording.take_failure()) is not None:
            yield _recording_failed("target", message)
        started = stopwatch.mark()
        num_replayed = len(ids) - 1 - target.length
        draft_length.start_round(num_replayed)
        limit = min(settings.num_draft_tokens, num_left - 1, rows_in_one_pass(switching, len(ids)))
        draft, failure = _propose(drafter, ids, limit, draft_length)
        if failure is not None:
            continue
        # A mark takes an event on CUDA, and the device waits for the host here.
        drafted_at = started if isinstance(drafter, NoDrafter) else stopwatch.mark()
        try:
            with memory_errors():
                verified = target_pass.verify(ids, draft)
        except (MemoryShortageError, DraftError) as error:
            target.rewind(min(len(ids) - 1, target.length))
            if isinstance(error, DraftError):
                failure = error
                continue
            if settings.strict or isinstance(drafter, NoDrafter):
                raise
            # The draft's cache is released, and the same step runs again with a single token. The error is a new one:
            # the traceback of this one keeps the tensors of the failed pass alive.
            failure = MemoryShortageError(error.message, error.hint)
            continue
        draft_ids, num_accepted, target_id = verified.draft_ids, verified.num_accepted, verified.target_id
        tokens = [*draft_ids[:num_accepted], target_id]
        num_kept, ends = _cut(tokens, settings.end_ids, options.stop)
        is_cut = num_kept < len(tokens)
        ids += tokens[:num_kept]
        num_left -= num_kept
        failure = _rewind(target, drafter, len(ids) - 1)
        if ends or num_left == 0:
            reason = "stop" if ends else "length"
        elapsed_seconds = stopwatch.elapsed_seconds(started)
        draft_seconds = stopwatch.seconds(started, drafted_at)
        verify_seconds = stopwatch.seconds(drafted_at, verified.passed_at)
        round_ = Round(
            index=index,
            draft_ids=tuple(draft_ids[:num_kept] if is_cut else draft_ids),
            num_accepted=min(num_accepted, num_kept),
            target_id=None if is_cut else target_id,
            num_cut=len(draft_ids) - num_kept if is_cut else 0,
            draft_seconds=draft_seconds,
            verify_seconds=verify_seconds,
            other_seconds=max(0.0, elapsed_seconds - draft_seconds - verify_seconds),
            source=draft.source if draft_ids else None,
            is_warmup=verified.is_warmup or draft.is_warmup,
            num_replayed=num_replayed,
            tree=verified.tree,
            num_passes=draft.num_passes,
            pass_rows=draft.pass_rows,
        )
        draft_length.observe(round_)
        yield round_
        index += 1
        if draft.recording_failure is not None:
            yield _recording_failed("draft", draft.recording_failure)
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
    stopwatch = stopwatch_of(options.clock)
    num_reused = target.length
    started = stopwatch.mark()
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
    target_at = stopwatch.mark()
    if failure is None:
        failure = failure_of(lambda: drafter.feed(ids[:-1]))
    ended = stopwatch.mark()
    target_seconds, draft_seconds = stopwatch.seconds(started, target_at), stopwatch.seconds(target_at, ended)
    return Prefill(len(ids), num_reused, target_seconds, draft_seconds), failure


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


def _recording_failed(role: str, reason: str) -> Notice:
    return Notice("recording_failed", f"the {role}'s passes can't be recorded, so they are slower: {reason}")


def _cut(tokens: Sequence[int], end_ids: frozenset[int], stop: StopCheck | None) -> tuple[int, bool]:
    """Returns how many of a round's new tokens to keep, and whether the text ends there."""
    has_end = not end_ids.isdisjoint(tokens)
    num_to_end = next(i + 1 for i, token in enumerate(tokens) if token in end_ids) if has_end else None
    num_to_stop = None if stop is None else stop.cut(tokens[:num_to_end])
    num_kept = num_to_end if num_to_stop is None else num_to_stop
    return (len(tokens), False) if num_kept is None else (num_kept, True)


def _rewind(target: TargetModel, drafter: Drafter, length: int) -> DraftError | None:
    """Restores the cache rule: between rounds each cache holds a prefix of `ids[:-1]`. Returns the drafter's error."""
    target.rewind(min(length, target.length))
    return failure_of(lambda: drafter.rewind(length))
