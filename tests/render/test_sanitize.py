from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.render.sanitize import UNSAFE, one_line, sanitize

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
"""Includes lone surrogates."""

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _is_dangerous(character: str) -> bool:
    code = ord(character)
    is_control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t"
    return is_control or character in BIDI or code == 0xFEFF or 0xE0000 <= code <= 0xE007F


@given(ANY_TEXT, st.booleans())
def test_output_has_no_character_that_controls_a_terminal(text: str, ascii_only: bool) -> None:
    assert not any(map(_is_dangerous, sanitize(text, ascii_only=ascii_only)))


@given(ANY_TEXT, st.booleans())
def test_sanitizing_twice_changes_nothing(text: str, ascii_only: bool) -> None:
    once = sanitize(text, ascii_only=ascii_only)

    assert sanitize(once, ascii_only=ascii_only) == once


@given(ANY_TEXT, ANY_TEXT, st.booleans())
def test_sanitized_chunks_join_to_the_sanitized_whole(left: str, right: str, ascii_only: bool) -> None:
    whole = sanitize(left + right, ascii_only=ascii_only)

    assert sanitize(left, ascii_only=ascii_only) + sanitize(right, ascii_only=ascii_only) == whole


@given(ANY_TEXT)
def test_output_can_be_encoded(text: str) -> None:
    sanitize(text).encode()


@given(ANY_TEXT.filter(lambda text: not any(map(_is_dangerous, text))))
def test_plain_text_is_unchanged(text: str) -> None:
    assert sanitize(text) == text


@given(ANY_TEXT)
def test_no_character_disappears(text: str) -> None:
    assert len(sanitize(text)) >= len(text)


@pytest.mark.thorough
def test_the_list_of_unsafe_characters_is_complete() -> None:
    assert list(UNSAFE) == [code for code in range(0x110000) if _is_dangerous(chr(code))]


@pytest.mark.parametrize(
    ("text", "shown", "shown_in_ascii"),
    [
        ("\x1b[31m", "␛[31m", "\\x1b[31m"),
        ("\x07", "␇", "\\x07"),
        ("a\rb\r\n", "a␍b␍\n", "a\\x0db\\x0d\n"),
        ("\x7f", "␡", "\\x7f"),
        ("\x9b2J", "<U+009B>2J", "\\x9b2J"),
        ("\u202egnp", "<U+202E>gnp", "\\u202egnp"),
        ("\ufeffa", "<U+FEFF>a", "\\ufeffa"),
        ("\U000e0041", "<U+E0041>", "\\U000e0041"),
        ("\ud800", "<U+D800>", "\\ud800"),
        ("a\u2028b", "a<U+2028>b", "a\\u2028b"),
    ],
)
def test_unsafe_characters_are_shown(text: str, shown: str, shown_in_ascii: str) -> None:
    assert sanitize(text) == shown
    assert sanitize(text, ascii_only=True) == shown_in_ascii


@pytest.mark.parametrize("text", ["👩‍👩‍👧", "क्‍ष", "می‌خواهم", "☺️", "日本語", "🇩🇪", "[/bold] :smile:", "\t\n"])
def test_writing_systems_and_emoji_stay_whole(text: str) -> None:
    assert sanitize(text) == text


def test_a_message_stays_on_one_line() -> None:
    assert one_line(" no\nsuch\r\nmodel\tat\u2028all\x1b ") == "no such model at<U+2028>all␛"
