"""Comparing vocabularies: target and draft share their ids, or the error shows the difference."""

from __future__ import annotations

import pytest

from specgen.core.errors import PairError
from specgen.text.vocabulary import Pairing, compare_tokenizers, table_size
from tests.loading.builders import fails, make_tokenizer, words


def test_the_same_tokenizer_shares_everything() -> None:
    assert compare_tokenizers(make_tokenizer(), make_tokenizer()) == Pairing(64)


@pytest.mark.parametrize(("target", "draft"), [(64, 60), (60, 64)])
@pytest.mark.fault("F29")
def test_more_tokens_at_the_end_are_accepted(target: int, draft: int) -> None:
    pairing = compare_tokenizers(make_tokenizer(words(target)), make_tokenizer(words(draft)))

    assert pairing == Pairing(60)


def test_added_tokens_at_the_end_are_accepted() -> None:
    draft = make_tokenizer()
    draft.add_tokens(["<tool>", "<think>"])

    assert compare_tokenizers(make_tokenizer(), draft).num_shared == 64
    assert table_size(draft) == 66


@pytest.mark.fault("F30")
def test_a_permuted_vocabulary_of_the_same_size_is_refused() -> None:
    permuted = words()
    permuted[10:14] = permuted[13], permuted[10], permuted[11], permuted[12]

    error = fails(
        PairError,
        lambda: compare_tokenizers(make_tokenizer(), make_tokenizer(permuted)),
        "4 of 64",
        "10 is 'w7' and 'w10'",
        "12 is 'w9' and 'w8'",
    )

    assert error.exit_code == 4
    assert "13 is" not in error.message


def test_a_different_last_token_is_refused() -> None:
    other = [*words()[:-1], "other"]

    fails(
        PairError,
        lambda: compare_tokenizers(make_tokenizer(), make_tokenizer(other)),
        "1 of 64",
        "63 is 'w60' and 'other'",
    )


def test_tokens_in_the_message_are_escaped() -> None:
    other = words()
    other[5] = "\x1b[2J"

    error = fails(PairError, lambda: compare_tokenizers(make_tokenizer(), make_tokenizer(other)), r"'\x1b[2J'")

    assert "\x1b" not in error.message


def test_an_added_token_in_the_middle_is_refused() -> None:
    target, draft = make_tokenizer(words(60)), make_tokenizer(words(60))
    target.add_tokens(["<a>", "<b>"])
    draft.add_tokens(["<b>", "<a>"])

    fails(PairError, lambda: compare_tokenizers(target, draft), "60 is '<a>' and '<b>'")


@pytest.mark.fault("F100")
def test_an_added_token_with_another_name_is_masked_with_a_notice() -> None:
    target, draft = make_tokenizer(words(60)), make_tokenizer(words(60))
    target.add_tokens(["<a>", "<think>", "<b>"])
    draft.add_tokens(["<a>", "<reserved_1>", "<b>"])

    pairing = compare_tokenizers(target, draft)

    assert (pairing.num_shared, pairing.masked_ids, pairing.kind) == (63, (61,), "same")
    assert "61 is '<think>' and '<reserved_1>'" in str(pairing.notice)


@pytest.mark.fault("F100")
def test_a_filler_of_a_gguf_is_masked() -> None:
    target, draft = make_tokenizer([*words(60), "[PAD60]"]), make_tokenizer(words(60))
    draft.add_tokens(["<pad>"])

    assert compare_tokenizers(target, draft).masked_ids == (60,)


@pytest.mark.fault("F100")
def test_many_different_added_tokens_are_another_vocabulary() -> None:
    target, draft = make_tokenizer(words(60)), make_tokenizer(words(60))
    target.add_tokens([f"<a{index}>" for index in range(20)])
    draft.add_tokens([f"<b{index}>" for index in range(20)])

    fails(PairError, lambda: compare_tokenizers(target, draft), "20 of 80")


@pytest.mark.fault("F31")
def test_a_different_end_token_is_a_notice() -> None:
    pairing = compare_tokenizers(make_tokenizer(), make_tokenizer(eos_token="<unk>"))

    assert pairing.notice is not None
    assert "2 ('<unk>')" in pairing.notice
    assert "1 ('<|im_end|>')" in pairing.notice
