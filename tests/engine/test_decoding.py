"""Tests the decoding loop on models with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.errors import DraftError, MemoryShortageError, NumericalError, PairError, SpecgenError
from specgen.core.events import Event, Finish, Notice, Prefill
from specgen.core.metrics import Counts
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.contract import DRAFT_NOT_FINITE
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import TableModel
from specgen.engine.memory_errors import memory_shortage
from specgen.engine.sampling import likeliest_on_host, token_distributions
from specgen.engine.target_distributions import TargetDistributions
from specgen.engine.target_pass import verify_greedy, verify_on_device
from specgen.engine.verification import Draft
from tests.fakes import (
    GREEDY,
    EmptyDrafter,
    FailingDrafter,
    ScriptedDrafter,
    cached,
    ids_of,
    oracle,
    random_tokens,
    rounds_of,
    run_events,
    sampler,
    tiny_model,
)

VOCAB = 32


def counting() -> TableModel:
    """Next token = last token + 1."""
    return TableModel(torch.eye(VOCAB).roll(1, dims=1) * 9.0)


def successor(ids: list[int], limit: int) -> list[int]:
    return [(ids[-1] + step) % VOCAB for step in range(1, limit + 1)]


def test_a_perfect_draft_of_four_gives_five_tokens_a_round() -> None:
    events = run_events(counting(), ScriptedDrafter(successor), [3], max_new_tokens=10)

    assert ids_of(events) == list(range(4, 14))
    assert [r.num_accepted for r in rounds_of(events)] == [4, 4]
    assert [r.target_id for r in rounds_of(events)] == [8, 13]


def test_the_last_round_drafts_no_more_than_the_budget_allows() -> None:
    events = run_events(counting(), ScriptedDrafter(successor), [3], max_new_tokens=7)

    assert [len(r.draft_ids) for r in rounds_of(events)] == [4, 1]
    assert events[-1] == Finish("length")


@pytest.mark.parametrize("budget", range(1, 8))
def test_the_budget_is_kept_exactly(budget: int) -> None:
    events = run_events(counting(), ScriptedDrafter(successor), [3], max_new_tokens=budget)

    assert len(ids_of(events)) == budget


@pytest.mark.fault("F77")
def test_a_round_is_cut_at_the_first_end_token() -> None:
    events = run_events(counting(), ScriptedDrafter(successor), [3], end_ids=[6, 7])
    (only,) = rounds_of(events)

    assert ids_of(events) == [4, 5, 6]
    assert only.draft_ids == (4, 5, 6)
    assert (only.num_accepted, only.target_id, only.num_cut) == (3, None, 1)
    assert events[-1] == Finish("stop")


@pytest.mark.fault("F77")
def test_an_end_token_as_the_correction_ends_the_text() -> None:
    events = run_events(counting(), ScriptedDrafter(lambda ids, limit: [4, 9]), [3], end_ids=[5])
    (only,) = rounds_of(events)

    assert ids_of(events) == [4, 5]
    assert (only.draft_ids, only.num_accepted, only.target_id) == ((4, 9), 1, 5)


def test_a_rejected_end_token_ends_nothing() -> None:
    events = run_events(counting(), ScriptedDrafter(lambda ids, limit: [0]), [3], end_ids=[0], max_new_tokens=5)

    assert ids_of(events) == [4, 5, 6, 7, 8]


class StopAfter:
    def __init__(self, token: int) -> None:
        self.token = token
        self.seen: list[int] = []

    def cut(self, ids: list[int]) -> int | None:
        self.seen += ids
        return ids.index(self.token) + 1 if self.token in ids else None


@pytest.mark.fault("F78")
def test_a_stop_check_cuts_inside_an_accepted_run() -> None:
    stop = StopAfter(5)

    events = run_events(counting(), ScriptedDrafter(successor), [3], stop=stop)

    assert ids_of(events) == [4, 5]
    assert rounds_of(events)[0].draft_ids == (4, 5)
    assert events[-1] == Finish("stop")


def test_the_earlier_of_end_token_and_stop_check_wins() -> None:
    stop = StopAfter(6)

    events = run_events(counting(), ScriptedDrafter(successor), [3], stop=stop, end_ids=[5])

    assert ids_of(events) == [4, 5]
    assert stop.seen == [4, 5]


def test_the_caches_hold_the_text_but_its_last_token_after_every_round() -> None:
    target, draft = cached(tiny_model()), cached(tiny_model(seed=1))
    drafter = ModelDrafter(draft, 96, sampler())
    length = 3

    for event in decode(target, drafter, [1, 2, 3], sampler(), DecodeOptions(DecodeSettings(20, 4))):
        if not isinstance(event, Prefill | Finish):
            length += len(event.token_ids)
            assert target.length == length - 1
            assert draft.length <= length - 1


def test_a_reader_that_leaves_early_leaves_the_caches_usable() -> None:
    target = cached(tiny_model())
    prompt = [1, 2, 3]
    run = decode(target, random_tokens(1, 96), prompt, sampler(), DecodeOptions(DecodeSettings(20, 4)))
    text = list(prompt)
    for event in run:
        text += ids_of([event])
        if len(text) > 8:
            break
    run.close()

    rest = ids_of(run_events(target, NoDrafter(), text, max_new_tokens=5))

    assert rest == ids_of(run_events(cached(tiny_model()), NoDrafter(), text, max_new_tokens=5))


def test_a_failing_drafter_is_dropped_with_one_notice_and_the_text_goes_on() -> None:
    events = run_events(counting(), FailingDrafter(2), [3], max_new_tokens=8)

    assert ids_of(events) == list(range(4, 12))
    assert [e.code for e in events if isinstance(e, Notice)] == ["draft_dropped"]


def test_strict_makes_a_failing_drafter_an_error() -> None:
    with pytest.raises(PairError, match="planted"):
        run_events(counting(), FailingDrafter(0), [3], strict=True)


class Broken(ScriptedDrafter):
    """Raises an error in one of its methods after `num_good` calls; otherwise proposes the right tokens."""

    def __init__(self, method: str, error: BaseException, num_good: int = 1) -> None:
        super().__init__(successor)
        real, calls = getattr(self, method), iter(range(10**6))

        def broken(*arguments: Any) -> Any:
            if next(calls) >= num_good:
                raise error
            return real(*arguments)

        setattr(self, method, broken)


ERRORS = [
    KeyError(7),
    ZeroDivisionError("division by zero"),
    AttributeError("no such thing"),
    StopIteration(),
    OSError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("method", "num_good"), [("feed", 0), ("propose", 0), ("propose", 1), ("rewind", 0)])
def test_any_exception_of_a_drafter_drops_it_with_one_notice(method: str, num_good: int, error: Exception) -> None:
    events = run_events(counting(), Broken(method, error, num_good), [3], max_new_tokens=12)

    assert ids_of(events) == list(range(4, 16))
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.code == "draft_dropped"
    assert type(error).__name__ in notice.message


def test_a_drafter_that_breaks_after_its_last_draft_costs_nothing() -> None:
    events = run_events(counting(), Broken("rewind", KeyError(7), 0), [3], max_new_tokens=5)

    assert ids_of(events) == [4, 5, 6, 7, 8]
    assert events[-1] == Finish("length")


@pytest.mark.parametrize("method", ["feed", "propose", "rewind"])
def test_ctrl_c_inside_a_drafter_is_not_caught(method: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_events(counting(), Broken(method, KeyboardInterrupt(), 0), [3])


@pytest.mark.parametrize("route", ["lookup", "model"])
def test_an_exception_in_a_combined_drafter_drops_it(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = CombinedDrafter(LookupDrafter(), ModelDrafter(counting(), VOCAB, sampler()))
    monkeypatch.setattr(getattr(drafter, route), "matches" if route == "lookup" else "propose", lambda *_: 1 / 0)

    events = run_events(counting(), drafter, [3], max_new_tokens=6)

    assert ids_of(events) == [4, 5, 6, 7, 8, 9]
    assert [e.code for e in events if isinstance(e, Notice)] == ["draft_dropped"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError(7), PairError),
        (PairError("other tokens"), PairError),
        (DraftError("broken"), PairError),
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryShortageError),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), MemoryShortageError),
        (NumericalError("NaN"), NumericalError),
    ],
)
@pytest.mark.parametrize("method", ["feed", "propose"])
def test_strict_ends_with_the_class_of_what_went_wrong(method: str, error: Exception, kind: type[SpecgenError]) -> None:
    with pytest.raises(SpecgenError) as caught:
        run_events(counting(), Broken(method, error, 0), [3], strict=True)

    assert type(caught.value) is kind
    assert "--strict" in (caught.value.hint or "")


def test_strict_reports_a_nan_of_the_draft_by_its_code() -> None:
    broken = TableModel(torch.full((VOCAB, VOCAB), float("nan")))

    with pytest.raises(NumericalError, match=DRAFT_NOT_FINITE):
        run_events(counting(), ModelDrafter(broken, VOCAB, sampler()), [3], strict=True)


class FullMemory(TableModel):
    """Runs out of memory at the given forwards; as in a real model, the cache is empty afterwards."""

    def __init__(self, *failing: int) -> None:
        super().__init__(counting().table)
        self.failing = failing
        self.num_tries = 0

    def logits(self, ids: Sequence[int], num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        self.num_tries += 1
        if self.num_tries - 1 in self.failing:
            self.rewind(0)
            raise MemoryShortageError("out of memory during generation")
        return super().logits(ids, num_last, tail)


@pytest.mark.fault("F40")
def test_memory_that_runs_out_in_the_target_drops_the_draft_and_the_step_is_tried_again() -> None:
    drafter = ScriptedDrafter(successor)

    events = run_events(FullMemory(1), drafter, [3], max_new_tokens=12)

    assert ids_of(events) == list(range(4, 16))
    assert [e.code for e in events if isinstance(e, Notice)] == ["draft_dropped"]
    assert [len(r.draft_ids) for r in rounds_of(events)] == [4, 0, 0, 0, 0, 0, 0, 0]
    assert drafter.rewinds[-1] == 0


@pytest.mark.parametrize(("drafter", "strict"), [(NoDrafter(), False), (ScriptedDrafter(successor), True)])
def test_without_a_draft_to_give_up_memory_that_runs_out_ends_the_run(drafter: Drafter, strict: bool) -> None:
    seen: list[Event] = []
    settings = DecodeSettings(12, 4, strict=strict)

    with pytest.raises(MemoryShortageError):
        _collect(decode(FullMemory(1), drafter, [3], sampler(), DecodeOptions(settings)), seen)

    assert ids_of(seen)


@pytest.mark.fault("F40")
def test_memory_that_stays_short_ends_the_run_after_one_retry() -> None:
    seen: list[Event] = []
    options = DecodeOptions(DecodeSettings(12, 4))
    run = decode(FullMemory(1, 2), ScriptedDrafter(successor), [3], sampler(), options)

    with pytest.raises(MemoryShortageError):
        _collect(run, seen)

    assert ids_of(seen) == [4, 5, 6, 7, 8]


SAMPLED = SamplingSettings(temperature=0.01, top_p=0.9)
RAW = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]


@pytest.mark.parametrize("error", RAW, ids=["cuda", "cpu"])
@pytest.mark.fault("F40")
def test_memory_that_runs_out_while_verifying_a_draft_drops_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_verification(monkeypatch, lambda num_drafted: num_drafted > 0, error)
    drafter, target = ScriptedDrafter(successor), counting()

    events = run_events(target, drafter, [3], max_new_tokens=8, sampling=SAMPLED)

    assert ids_of(events) == list(range(4, 12))
    assert [e.code for e in events if isinstance(e, Notice)] == ["draft_dropped"]
    assert drafter.rewinds == [0]


@pytest.mark.parametrize("error", RAW, ids=["cuda", "cpu"])
def test_memory_too_short_for_verifying_one_token_ends_the_run_as_such(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_verification(monkeypatch, lambda num_drafted: True, error)
    target = counting()

    with pytest.raises(MemoryShortageError):
        run_events(target, NoDrafter(), [3, 4, 5], sampling=SAMPLED)

    assert target.cached_ids == [3, 4]


def _break_verification(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], error: Exception) -> None:
    real = TargetDistributions.of_one

    def broken(self: TargetDistributions, logits: torch.Tensor, num_before: int, path: torch.Tensor) -> Any:
        if when(len(path)):
            raise error
        return real(self, logits, num_before, path)

    monkeypatch.setattr(TargetDistributions, "of_one", broken)


class FullPrefill(TableModel):
    """Out of memory in prefill until the drafter has released its cache."""

    def __init__(self, drafter: ScriptedDrafter, error: Exception) -> None:
        super().__init__(counting().table)
        self.drafter, self.error = drafter, error
        self.num_tries = 0

    def feed(self, ids: Sequence[int]) -> None:
        self.num_tries += 1
        if 0 not in self.drafter.rewinds:
            raise self.error
        super().feed(ids)


@pytest.mark.parametrize("error", [*RAW, MemoryShortageError("out of memory during generation")])
@pytest.mark.fault("F40")
def test_memory_that_runs_out_in_the_targets_prefill_drops_the_draft_and_it_is_tried_again(error: Exception) -> None:
    drafter = ScriptedDrafter(successor)

    events = run_events(FullPrefill(drafter, error), drafter, [1, 2, 3], max_new_tokens=6)

    assert isinstance(events[0], Prefill)
    assert ids_of(events) == [4, 5, 6, 7, 8, 9]
    assert [e.code for e in events if isinstance(e, Notice)] == ["draft_dropped"]
    assert all(not r.draft_ids for r in rounds_of(events))


@pytest.mark.parametrize("strict", [True, False])
def test_a_prefill_that_finds_no_memory_ends_the_run(strict: bool) -> None:
    target = FullPrefill(ScriptedDrafter(successor), RAW[1])
    drafter = ScriptedDrafter(successor) if strict else NoDrafter()

    with pytest.raises(MemoryShortageError):
        run_events(target, drafter, [1, 2, 3], strict=strict)

    assert target.num_tries == 1


@pytest.mark.parametrize("error", RAW, ids=["cuda", "cpu"])
@pytest.mark.fault("F40")
def test_memory_that_runs_out_in_the_drafts_prefill_costs_the_draft_only(error: Exception) -> None:
    drafter = Broken("feed", error, 0)

    events = run_events(counting(), drafter, [1, 2, 3], max_new_tokens=6)

    assert ids_of(events) == [4, 5, 6, 7, 8, 9]
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.code == "draft_dropped"
    assert memory_shortage().message in notice.message
    assert drafter.rewinds == [0]


def _collect(run: Iterator[Event], into: list[Event]) -> None:
    for event in run:
        into.append(event)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings(temperature=1.0)])
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.fault("F42")
def test_broken_target_logits_stop_the_run_and_keep_what_was_yielded(row: int, sampling: SamplingSettings) -> None:
    target = counting()
    target.table[7 + row, 0] = float("nan")
    run = decode(target, ScriptedDrafter(successor), [3], sampler(sampling), DecodeOptions(DecodeSettings(20, 3)))
    seen: list[Event] = []

    with pytest.raises(NumericalError):
        _collect(run, seen)

    # One whole round came before the broken row, and nothing of the round that has it.
    assert ids_of(seen) == [4, 5, 6, 7]


@pytest.mark.fault("F43")
def test_a_nan_in_the_drafts_distribution_drops_the_draft_and_keeps_the_text() -> None:
    broken = TableModel(torch.full((VOCAB, VOCAB), float("nan")))
    sampling = SamplingSettings(temperature=1e-6)
    drafter = ModelDrafter(broken, VOCAB, sampler(sampling))

    events = run_events(counting(), drafter, [3], sampling=sampling, max_new_tokens=5)

    assert ids_of(events) == [4, 5, 6, 7, 8]
    assert any(isinstance(event, Notice) for event in events)


@pytest.mark.parametrize("draft_length", [FixedLength(), CostAwareLength(CostTable({1: 1.0}), DraftCost())])
@pytest.mark.fault("F43")
def test_a_nan_in_a_greedy_draft_drops_the_draft_and_keeps_the_text(draft_length: LengthPolicy) -> None:
    drafter = ModelDrafter(TableModel(torch.full((VOCAB, VOCAB), float("nan"))), VOCAB, sampler())

    events = run_events(counting(), drafter, [3], draft_length=draft_length, max_new_tokens=5)

    assert ids_of(events) == [4, 5, 6, 7, 8]
    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["draft_dropped"]
    assert "NaN" in notices[0].message


def test_a_token_the_draft_does_not_know_does_not_break_its_repetition_penalty() -> None:
    known = TableModel(torch.eye(VOCAB).roll(1, dims=1)[:, :10])
    sampling = SamplingSettings(repetition_penalty=1.1)
    drafter = ModelDrafter(known, VOCAB, sampler(sampling))

    events = run_events(counting(), drafter, [20], sampling=sampling, max_new_tokens=5)

    assert not any(isinstance(event, Notice) for event in events)


@pytest.mark.fault("F02")
def test_the_draft_stops_at_its_own_window() -> None:
    draft = cached(tiny_model(seed=0))
    drafter = ModelDrafter(draft, 96, sampler(), max_positions=10)

    events = run_events(cached(tiny_model()), drafter, [1, 2, 3], max_new_tokens=20)

    assert ids_of(events) == ids_of(run_events(cached(tiny_model()), NoDrafter(), [1, 2, 3], max_new_tokens=20))
    assert draft.length <= 10
    assert rounds_of(events)[0].draft_ids
    assert not rounds_of(events)[-1].draft_ids


def test_a_token_the_draft_has_no_embedding_for_ends_drafting_not_the_run() -> None:
    small = TableModel(torch.eye(8).roll(1, dims=1))
    drafter = ModelDrafter(small, VOCAB, sampler())

    events = run_events(counting(), drafter, [3], max_new_tokens=12)

    assert ids_of(events) == list(range(4, 16))


@pytest.mark.fault("F73")
def test_time_spent_by_the_reader_is_in_no_figure() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    counts = Counts()
    run = decode(counting(), EmptyDrafter(), [3], sampler(), DecodeOptions(DecodeSettings(4, 2), clock=clock))
    for event in run:
        now[0] += 1000.0
        if isinstance(event, Prefill):
            counts.observe_prefill(event)
        elif not isinstance(event, Finish):
            counts.observe(event)

    assert counts.decode_seconds == 4 * 3
    assert counts.prefill_seconds == 2


def test_lookup_repeats_what_followed_the_same_tokens_before() -> None:
    drafter = LookupDrafter()

    draft = drafter.propose([1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 3, FixedLength())

    assert draft.ids.tolist() == [4, 5, 6]
    assert draft.probs is None


def test_lookup_never_matches_the_end_with_itself() -> None:
    assert LookupDrafter().propose([1, 2, 3], 4, FixedLength()).ids.tolist() == []


def test_lookup_prefers_the_longer_then_the_more_recent_match() -> None:
    drafter = LookupDrafter()

    assert drafter.propose([5, 1, 2, 70, 8, 1, 2, 71, 5, 1, 2], 1, FixedLength()).ids.tolist() == [70]
    assert LookupDrafter().propose([1, 2, 70, 1, 2, 71, 9, 1, 2], 1, FixedLength()).ids.tolist() == [71]


def test_lookup_forgets_removed_text() -> None:
    drafter = LookupDrafter()
    drafter.feed([1, 2, 3, 4, 5])

    drafter.rewind(2)

    assert drafter.propose([1, 2, 9, 9, 1, 2], 1, FixedLength()).ids.tolist() == [9]


drafts = st.lists(st.lists(st.integers(0, 95), max_size=8), min_size=1, max_size=12)


@given(
    prompt=st.lists(st.integers(0, 95), min_size=1, max_size=6),
    proposals=drafts,
    budget=st.integers(1, 16),
    ends=st.sets(st.integers(0, 95), max_size=8),
    good=st.booleans(),
)
@pytest.mark.fault("F77")
def test_any_drafts_keep_the_text_and_the_counts_add_up(
    prompt: list[int], proposals: list[list[int]], budget: int, ends: set[int], good: bool
) -> None:
    plain = ids_of(run_events(cached(tiny_model()), NoDrafter(), prompt, max_new_tokens=budget, end_ids=ends))
    calls = iter(range(10**6))
    guess = oracle(plain, len(prompt))

    def script(ids: list[int], limit: int) -> list[int]:
        number = next(calls)
        known = guess.script(ids, limit)[: number % 4] if good else []
        return [*known, *proposals[number % len(proposals)]]

    drafter = ScriptedDrafter(script)

    events = run_events(cached(tiny_model()), drafter, prompt, max_new_tokens=budget, end_ids=ends, num_draft_tokens=8)
    rounds = rounds_of(events)
    counts = Counts()
    for each in rounds:
        counts.observe(each)

    assert ids_of(events) == plain
    assert all(1 <= len(r.token_ids) <= 9 for r in rounds)
    assert counts.num_emitted == counts.num_accepted + sum(r.target_id is not None for r in rounds) == len(plain)
    assert 0 <= counts.num_accepted <= counts.num_tested <= counts.num_drafted
    assert sum(counts.accepted_histogram) == counts.num_rounds


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_a_greedy_target_in_host_memory_is_matched_as_on_any_device(rows: list[list[int]], data: st.DataObject) -> None:
    bad = data.draw(st.sampled_from([None, float("nan"), float("inf")]))
    logits = torch.tensor(rows, dtype=torch.float32)
    if bad is not None:
        logits[data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 3))] = bad
    draft = Draft(
        torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(rows) - 1, max_size=len(rows) - 1))).long()
    )

    top = likeliest_on_host(logits)

    assert top is not None
    by_torch = verify_on_device(token_distributions(logits, GREEDY), draft, sampler().randomness, "block")
    assert verify_greedy(*top, draft) == by_torch
    assert by_torch[2] == (bad is None)
