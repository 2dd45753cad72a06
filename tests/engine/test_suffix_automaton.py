"""Tests the suffix automaton against a search through the whole text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from specgen.engine.drafters.suffix_automaton import NUM_UPDATED, Cursor, SuffixAutomaton

texts = st.integers(1, 4).flatmap(lambda size: st.lists(st.integers(0, size), min_size=1, max_size=NUM_UPDATED))


def searched(ids: Sequence[int], token: int) -> tuple[int, int, int, int] | None:
    """Length, latest end, occurrences, and those that went on like the latest, by trying every run."""
    whole = [*ids, token]
    for length in range(len(whole) - 1, 0, -1):
        ends = [end for end in range(length, len(whole)) if whole[end - length : end] == whole[-length:]]
        if ends:
            return length, ends[-1], len(ends), sum(whole[end] == whole[ends[-1]] for end in ends)
    return None


@given(texts)
def test_the_longest_run_that_occurred_before_is_found_at_its_latest_place(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for place, token in enumerate(text):
        found = automaton.longest_match(automaton.end, token)

        assert (found and (found.length, found.end, found.num_occurrences, found.num_same_continuation)) == searched(
            text[:place], token
        )
        automaton.extend([token])


def test_the_index_grows_with_the_text_and_not_with_its_square() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([7] * 5000)

    assert len(automaton._length) <= 2 * 5000
    match = automaton.longest_match(automaton.end, 7)
    assert match is not None
    assert match.length == 5000


@given(texts, texts)
def test_another_text_is_followed_through_the_index(text: list[int], other: list[int]) -> None:
    automaton, place = SuffixAutomaton(), Cursor()
    automaton.extend(text)
    for end, token in enumerate(other, 1):
        found = automaton.longest_match(place, token)
        runs = [other[end - length : end] for length in range(1, end + 1)]
        lengths = [len(run) for run in runs if any(text[i : i + len(run)] == run for i in range(len(text)))]

        assert (0 if found is None else found.length) == max(lengths, default=0)
        place = automaton.step(place, token)
