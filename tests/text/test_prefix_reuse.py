"""Reusing cached tokens for ids that spell the same text in other tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specgen.text.prefix_reuse import keep_cached_ids
from tests.toys import toy_tokenizer

TOKENIZER = toy_tokenizer()
CONTROL = set(TOKENIZER.added_tokens_decoder)
PLAIN_IDS = st.lists(st.sampled_from([i for i in range(len(TOKENIZER)) if i not in CONTROL]), max_size=12)


def spelled(ids: list[int]) -> str:
    return "".join(TOKENIZER.convert_ids_to_tokens(ids))


@given(cached=PLAIN_IDS, tail=st.text(max_size=8))
def test_the_same_text_keeps_the_cached_tokens(cached: list[int], tail: str) -> None:
    text = TOKENIZER.decode(cached)
    encoded = TOKENIZER.encode(text + tail, add_special_tokens=False)

    kept = keep_cached_ids(TOKENIZER, cached, encoded)

    assert spelled(kept) == spelled(encoded)
    if spelled(encoded).startswith(spelled(cached)) and not tail:
        assert kept == cached


@given(cached=st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=12), text=st.text(max_size=12))
def test_any_cache_keeps_the_text_and_its_control_tokens(cached: list[int], text: str) -> None:
    encoded = [*TOKENIZER.encode(text, add_special_tokens=False), 288, *TOKENIZER.encode("a")]

    kept = keep_cached_ids(TOKENIZER, cached, encoded)

    assert spelled(kept) == spelled(encoded)
    assert [i for i in kept if i in CONTROL] == [i for i in encoded if i in CONTROL]


def test_a_word_in_other_tokens_is_kept_and_the_rest_appended() -> None:
    encoded = TOKENIZER.encode("The quick fox")
    letters = [TOKENIZER.convert_tokens_to_ids(char) for char in "The"] + TOKENIZER.encode(" quick")

    assert keep_cached_ids(TOKENIZER, letters, encoded) == [*letters, *TOKENIZER.encode(" fox")]


def test_a_control_token_is_not_matched_with_text_that_looks_like_it() -> None:
    control = [TOKENIZER.convert_tokens_to_ids("<|im_end|>")]
    typed = [token for char in "<|im_end|>" for token in TOKENIZER.encode(char)]

    assert keep_cached_ids(TOKENIZER, control, typed) == typed
    assert keep_cached_ids(TOKENIZER, typed, control) == control
