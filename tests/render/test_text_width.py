from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from specgen.render.text_width import CursorColumn, certain_width, cut_to_cells


@pytest.mark.parametrize(("character", "width"), [("a", 1), ("~", 1), ("ß", None), ("ж", None), ("日", 2), ("한", 2)])
def test_widths_that_all_terminals_agree_on_are_certain(character: str, width: int | None) -> None:
    if unicodedata.east_asian_width(character) == "A":
        assert certain_width(character) is None
    else:
        assert certain_width(character) == width


@pytest.mark.parametrize("character", ["🙂", "\u0301", "\u200d", "🇩", "☺", "\ufe0f", "␛", "é", "ᄀ", "क", "\U0001f3fb"])
def test_widths_that_terminals_disagree_on_are_uncertain(character: str) -> None:
    assert certain_width(character) is None


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cc", "Cs"])), st.integers(0, 30))
def test_cut_text_fits_and_is_a_prefix(text: str, num_cells: int) -> None:
    shown = cut_to_cells(text, num_cells, "…")

    assert cell_len(shown) <= num_cells or not shown
    assert text.startswith(shown.removesuffix("…"))


def test_text_that_fits_is_not_cut() -> None:
    assert cut_to_cells(" dog and", 8, "…") == " dog and"
    assert cut_to_cells(" dog and", 7, "…") == " dog a…"


@pytest.mark.parametrize("joining", ["\u0301", "\u200d", "\ufe0f", "\U0001f3fb", "🇩"])
def test_text_that_could_change_the_preceding_cell_is_not_shown(joining: str) -> None:
    assert cut_to_cells(joining + "abc", 20, "…") == ""
    assert cut_to_cells("abc" + joining, 20, "…") == "abc…"


def test_the_column_follows_wrapping_newlines_and_tabs() -> None:
    column = CursorColumn()

    column.advance("x" * 23, 20)
    assert column.remaining(20) == 17

    column.advance("\ta", 20)
    assert column.remaining(20) == 11

    column.advance("b\ncd", 20)
    assert column.remaining(20) == 18


def test_a_full_row_has_no_cells_left() -> None:
    column = CursorColumn()

    column.advance("x" * 20, 20)

    assert column.remaining(20) == 0


def test_the_column_is_uncertain_after_an_uncertain_character_until_a_newline() -> None:
    column = CursorColumn()

    column.advance("a🙂bc", 20)
    assert column.remaining(20) == 0

    column.advance("d\ne", 20)
    assert column.remaining(20) == 19


def test_the_column_is_uncertain_after_a_wide_character_at_the_last_cell() -> None:
    column = CursorColumn()

    column.advance("x" * 19 + "日", 20)

    assert column.remaining(20) == 0
