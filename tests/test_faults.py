"""Checks that the table of faults is complete and up to date."""

from __future__ import annotations

import pytest

from tests.faults import PROMISES, REPORTED, TABLE, UNTESTED, marked_tests, table


def test_the_catalogue_has_eighty_faults_and_those_of_other_peoples_reports() -> None:
    numbers = [int(fault[1:]) for fault in PROMISES]

    assert numbers[:80] == list(range(1, 81))
    assert numbers == sorted(set(numbers)), "a number is missing its place, or used twice"


@pytest.mark.thorough
def test_every_fault_is_covered_by_a_test_or_listed_with_a_reason() -> None:
    marked = set(marked_tests())

    assert marked <= set(PROMISES) | set(REPORTED), "a test is marked with a fault that does not exist"
    assert set(PROMISES) - marked == set(UNTESTED)
    assert set(REPORTED) <= marked
    assert not set(REPORTED) & set(PROMISES)


def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text() == table(), "run: python -m tests.faults"
