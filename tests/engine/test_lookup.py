"""Tests lookup drafts from the text and from files, and the combination with a draft model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import AcceptanceByMatch, LookupMatch
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from tests.fakes import cached, ids_of, rounds_of, run_events, sampler, tiny_model


def offered(drafter: LookupDrafter, ids: list[int], limit: int = 8) -> list[int]:
    match = drafter.match(ids, limit)
    return [] if match is None else list(match.ids)


def test_a_file_is_searched_in_addition_to_the_text() -> None:
    assert offered(LookupDrafter([[5, 6, 7, 8]]), [1, 5, 6]) == [7, 8]


def test_no_match_and_no_draft_reaches_from_one_file_into_the_next() -> None:
    drafter = LookupDrafter([[5, 6], [7, 8]])

    assert offered(drafter, [1, 5, 6]) == []
    match = drafter.match([6, 7], 8)
    assert match is not None
    assert (list(match.ids), match.num_matched) == ([8], 1)


def test_the_text_goes_before_a_file_unless_the_file_matches_longer() -> None:
    drafter = LookupDrafter([[1, 2, 3, 50], [2, 3, 51]])

    assert offered(drafter, [9, 2, 3, 60, 2, 3], 1) == [60]
    assert offered(drafter, [9, 2, 3, 60, 2, 3, 1, 2, 3], 1) == [50]
    assert offered(LookupDrafter([[5, 6, 7, 1, 6, 8]]), [9, 5, 6], 1) == [7]


def test_files_stay_when_the_text_is_removed() -> None:
    drafter = LookupDrafter([[5, 6, 7]])
    drafter.feed([1, 2, 3, 4])

    drafter.rewind(0)

    assert drafter.num_indexed == 0
    assert offered(drafter, [1, 5, 6]) == [7]


def test_a_text_that_repeats_itself_is_expected_to_go_on() -> None:
    assert offered(LookupDrafter(), [9, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_a_match_is_trusted_more_the_longer_it_is_and_with_every_token_of_it() -> None:
    acceptance = AcceptanceByMatch()

    short, long = acceptance.estimates(LookupMatch([1] * 4, 2)), acceptance.estimates(LookupMatch([1] * 4, 20))

    assert short == sorted(short)
    assert all(a < b for a, b in zip(short, long, strict=True))
    assert acceptance.estimates(LookupMatch([1], 2, is_ambiguous=True))[0] < short[0]


@pytest.mark.parametrize("was_drafted", [True, False])
def test_a_match_is_learned_from_whether_it_was_drafted_or_not(was_drafted: bool) -> None:
    draft_length, match = FixedLength(), LookupMatch([1, 2], 3)
    before = draft_length._acceptance.estimates(match)[0]
    for index in range(20):
        draft_length.start_round()
        draft_length.tokens_to_take(match, has_draft_model=True)
        drafted = (1, 2) if was_drafted else ()
        draft_length.observe(Round(index, drafted, 0, 9, 0, 0.0, 1.0, 0.0, "lookup" if was_drafted else None))

    assert draft_length._acceptance.estimates(match)[0] < before / 3


POLICIES: dict[str, Callable[[], tuple[LengthPolicy, AcceptanceByMatch]]] = {
    "fixed": lambda: (policy := FixedLength(), policy._acceptance),
    "auto": lambda: (policy := CostAwareLength(CostTable({1: 1.0, 2: 1.0})), policy._lookup._acceptance),
    "tree": lambda: (policy := TreeLength(4), policy._match_acceptance),
}
"""Policies, and where each of them learns from matches."""


@pytest.mark.parametrize("name", POLICIES)
def test_what_held_in_one_text_makes_no_other_match_better_in_the_next(name: str) -> None:
    policy, acceptance = POLICIES[name]()
    other = LookupMatch([1], 2)
    fresh = acceptance.estimates(other)
    policy.start_text(Prefill(10, 0, 1.0, 0.0))
    for _ in range(40):
        acceptance.observe(LookupMatch([1, 2], 9), (1, 2))
    assert acceptance.estimates(other) > fresh

    policy.start_text(Prefill(10, 0, 1.0, 0.0))

    assert acceptance.estimates(other) == fresh


def combined() -> CombinedDrafter:
    model = ModelDrafter(cached(tiny_model(seed=1)), 96, sampler())
    return CombinedDrafter(LookupDrafter(), model)


def test_rounds_say_which_source_drafted() -> None:
    prompt = [1, 17, 40, 17, 40, 9]
    plain = ids_of(run_events(cached(tiny_model()), combined(), prompt, max_new_tokens=60, num_draft_tokens=0))

    events = run_events(cached(tiny_model()), combined(), [*prompt, *plain, *prompt], max_new_tokens=60)

    sources = {each.source for each in rounds_of(events) if each.draft_ids}
    assert "lookup" in sources
    assert all(each.source is None for each in rounds_of(events) if not each.draft_ids)
