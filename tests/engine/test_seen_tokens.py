"""The record of seen tokens equals the marks made from the whole text, whatever the text becomes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.settings import SamplingSettings
from specgen.engine.seen_tokens import SeenTokens, seen_tokens

CPU = torch.device("cpu")
VOCAB_SIZE = 12
ids = st.lists(st.integers(0, VOCAB_SIZE + 3), max_size=9)
drafts = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=5)


def marks(text: list[int], draft: list[int]) -> list[list[bool]]:
    """Marks made from the whole text: one row per position of the draft, and one after it."""
    return [[token in [*text, *draft[:count]] for token in range(VOCAB_SIZE)] for count in range(len(draft) + 1)]


@given(st.lists(st.tuples(st.integers(0, 12), ids, drafts), max_size=8))
def test_the_record_equals_the_marks_of_the_whole_text(rounds: list[tuple[int, list[int], list[int]]]) -> None:
    record, text = SeenTokens(VOCAB_SIZE, CPU), [0]
    for num_removed, new, draft in rounds:
        text = [*text[: max(0, len(text) - num_removed)], *new]
        draft_ids = torch.tensor(draft, dtype=torch.int64)

        record.update(text)

        expected = marks(text, draft)
        assert record.rows(draft_ids).tolist() == expected
        assert record.row(draft_ids).tolist() == expected[-1:]


def test_a_text_of_the_same_length_is_not_taken_for_the_old_one() -> None:
    record = SeenTokens(VOCAB_SIZE, CPU)
    for text in ([1, 2], [1, 3], (4, 5)):
        record.update(text)

        assert record.row(torch.tensor([], dtype=torch.int64)).tolist() == marks(list(text), [])


def test_without_a_penalty_nothing_is_recorded() -> None:
    assert seen_tokens(SamplingSettings(temperature=1.0), VOCAB_SIZE, CPU) is None
    assert seen_tokens(SamplingSettings(temperature=1.0, repetition_penalty=1.1), VOCAB_SIZE, CPU) is not None
