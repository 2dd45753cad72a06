"""Decoding round by round: no text is lost, no character split, no stop string shown; rejected tokens have context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from specgen.core.events import FinalText, Finish, Notice, Prefill, Round, RoundText, TextEvent, TokenState
from specgen.text.detokenizer import Detokenizer
from specgen.text.stop_strings import StopBuffer, StopStrings, with_text
from tests.profiles import num_examples
from tests.toys import token_id, toy_tokenizer

TOY: Tokenizer = toy_tokenizer().backend_tokenizer
NUM_TOY = len(toy_tokenizer())
UNICODE = st.text(max_size=20) | st.text(
    alphabet=st.sampled_from("aé日本🙂👩‍👩‍👧‍👦🇩🇪नमस्ते한국어\u0301\ufffd \n"), max_size=20
)
BYTES = [token_id(bytes([byte])) for byte in range(256)]


def byte_ids(text: str | bytes) -> list[int]:
    """Encodes a text with one token per byte, the hardest way to split it."""
    return [BYTES[byte] for byte in (text.encode() if isinstance(text, str) else text)]


def stream(detokenizer: Detokenizer, ids: Iterable[int]) -> list[str]:
    return [*[detokenizer.commit(token) for token in ids], detokenizer.flush()]


def decoded(ids: Sequence[int], tokenizer: Tokenizer = TOY) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


# --- Detokenizer ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, NUM_TOY - 1), max_size=40))
@settings(max_examples=num_examples(400))
def test_the_pieces_of_any_ids_join_to_their_text(ids: list[int]) -> None:
    assert "".join(stream(Detokenizer(TOY), ids)) == decoded(ids)


@given(UNICODE)
@pytest.mark.fault("F75")
def test_text_split_into_bytes_is_restored_without_a_replacement_character(text: str) -> None:
    assert "".join(stream(Detokenizer(TOY), byte_ids(text))) == text


@given(UNICODE, st.data())
def test_before_the_flush_a_truncated_text_is_a_prefix_of_the_whole(text: str, data: st.DataObject) -> None:
    ids = byte_ids(text)
    cut = data.draw(st.integers(0, len(ids)))

    *pieces, _ = stream(Detokenizer(TOY), ids[:cut])

    assert text.startswith("".join(pieces))


@given(st.lists(st.integers(0, NUM_TOY - 1), max_size=8), UNICODE)
@example(context=byte_ids("\ufffd"), text="a")
@example(context=byte_ids(b"a\xe6\x97"), text="b")
def test_text_after_any_context_is_what_it_adds_to_the_whole(context: list[int], text: str) -> None:
    before = decoded(context)

    pieces = stream(Detokenizer(TOY, context), byte_ids(text))

    # An incomplete character at the end of the context is replaced there; the text after it is complete.
    assert before + "".join(pieces) == decoded([*context, *byte_ids(text)])


def test_a_character_is_returned_with_its_last_token() -> None:
    assert stream(Detokenizer(TOY), byte_ids("🙂é")) == ["", "", "", "🙂", "", "é", ""]


@pytest.mark.fault("F76")
def test_an_incomplete_character_is_flushed_once() -> None:
    detokenizer = Detokenizer(TOY)
    pieces = [detokenizer.commit(token) for token in byte_ids(b"a\xe6\x97")]

    assert (pieces, detokenizer.flush(), detokenizer.flush()) == (["a", "", ""], "\ufffd", "")


def test_invalid_bytes_are_returned_with_the_next_character() -> None:
    pieces = stream(Detokenizer(TOY), byte_ids(b"\xe6\xff\x80a"))

    assert pieces == ["", "", "", "\ufffd\ufffd\ufffda", ""]


@pytest.mark.fault("F79")
def test_special_tokens_have_no_text_unless_requested() -> None:
    end = token_id("<|im_end|>")

    assert stream(Detokenizer(TOY), [*byte_ids("a"), end, *byte_ids("b")]) == ["a", "", "b", ""]
    assert stream(Detokenizer(TOY, skip_special_tokens=False), [end])[0] == "<|im_end|>"


def test_added_tokens_that_are_not_special_are_text() -> None:
    assert stream(Detokenizer(TOY), [token_id("<tool_call>")])[0] == "<tool_call>"


@given(st.lists(st.integers(0, NUM_TOY - 1), max_size=12), st.lists(st.integers(0, NUM_TOY - 1), max_size=6))
def test_a_peek_changes_nothing(ids: list[int], guess: list[int]) -> None:
    plain, peeking = Detokenizer(TOY), Detokenizer(TOY)
    expected = stream(plain, ids)
    pieces = []
    for token in ids:
        peeking.peek(guess)
        pieces.append(peeking.commit(token))

    peeking.peek(guess)

    assert [*pieces, peeking.flush()] == expected


def test_a_peek_returns_what_the_next_tokens_would_add() -> None:
    detokenizer = Detokenizer(TOY)
    for token in byte_ids(b"caf\xc3"):
        detokenizer.commit(token)

    assert detokenizer.peek(byte_ids(b"\xa9!")) == ["é", "!"]
    assert detokenizer.commit(byte_ids(b"\xa8")[0]) == "è"


def test_a_fork_is_independent() -> None:
    detokenizer = Detokenizer(TOY)
    detokenizer.commit(byte_ids(b"\xc3")[0])
    fork = detokenizer.fork()

    assert fork.commit(byte_ids(b"\xa8")[0]) == "è"
    assert detokenizer.commit(byte_ids(b"\xa9")[0]) == "é"


def metaspace_tokenizer() -> Tokenizer:
    """Builds a tokenizer like Llama 2's: `▁` starts a word, the first space is dropped, unknown bytes are tokens."""
    words = ["▁", "▁Hello", "▁world", "!", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokenizer = Tokenizer(BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    replace, fallback, fuse = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    tokenizer.decoder = decoders.Sequence([replace, fallback, fuse, decoders.Strip(" ", 1, 0)])
    return tokenizer


def test_an_answer_drops_the_space_of_its_first_word_as_the_library_does() -> None:
    assert stream(Detokenizer(metaspace_tokenizer()), [1, 2, 3]) == ["Hello", " world", "!", ""]


def test_a_continuation_keeps_the_space_of_its_first_word() -> None:
    assert stream(Detokenizer(metaspace_tokenizer(), [1]), [2, 3]) == [" world", "!", ""]


def test_a_byte_after_a_complete_character_does_not_change_it() -> None:
    # The library decodes a run of byte tokens as a whole: é and then a lone byte become three replacements.
    tokenizer = metaspace_tokenizer()
    first_byte = 4
    ids = [first_byte + byte for byte in "éß".encode()] + [1]

    pieces = stream(Detokenizer(tokenizer), ids)

    assert "".join(pieces) == "éß Hello"


def test_an_invalid_byte_after_a_complete_character_does_not_end_the_stream() -> None:
    tokenizer = metaspace_tokenizer()
    first_byte = 4
    ids = [first_byte + 0xC3, first_byte + 0xA9, first_byte + 0xFF, 1, 2]

    text = "".join(stream(Detokenizer(tokenizer), ids))

    assert text.startswith("é")
    assert text.endswith(" Hello world")


@pytest.mark.real
@pytest.mark.fault("F75")
def test_the_pieces_of_any_ids_of_a_real_tokenizer_join_to_their_text(smollm2_tokenizer: Any) -> None:
    tokenizer: Tokenizer = smollm2_tokenizer.backend_tokenizer

    @given(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
    def check(ids: list[int]) -> None:
        assert "".join(stream(Detokenizer(tokenizer), ids)) == decoded(ids, tokenizer)

    check()


@pytest.mark.real
def test_unicode_text_is_restored_after_any_context_of_a_real_tokenizer(smollm2_tokenizer: Any) -> None:
    tokenizer: Tokenizer = smollm2_tokenizer.backend_tokenizer

    @given(UNICODE, st.integers(0, 40))
    def check(text: str, num_context: int) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        context, rest = ids[:num_context], ids[num_context:]

        pieces = stream(Detokenizer(tokenizer, context), rest)

        whole, before = decoded(ids, tokenizer), decoded(context, tokenizer)
        # A context that ends inside a character contains a replacement for it already.
        if whole.startswith(before):
            assert before + "".join(pieces) == whole

    check()


# --- Stop strings ---------------------------------------------------------------------------------------------------


def splits(text: str) -> list[tuple[str, str, str]]:
    return [(text[:a], text[a:b], text[b:]) for a in range(len(text) + 1) for b in range(a, len(text) + 1)]


@pytest.mark.parametrize("pieces", splits("ab##END##cd"))
@pytest.mark.fault("F78")
def test_text_ends_before_a_stop_string_however_it_is_split(pieces: tuple[str, str, str]) -> None:
    buffer = StopBuffer(["##END##"])

    shown = [buffer.feed(piece) for piece in pieces]

    assert "".join(shown) + buffer.flush() == "ab"
    assert buffer.matched == "##END##"


@given(
    st.lists(st.text("ab#E", max_size=4), max_size=12), st.lists(st.text("ab#E", min_size=1, max_size=4), max_size=3)
)
def test_the_text_before_the_first_stop_string_is_shown(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    buffer = StopBuffer(stops)

    shown = "".join(buffer.feed(piece) for piece in pieces) + buffer.flush()

    if not any(stop in whole for stop in stops):
        assert shown == whole
    else:
        assert not any(stop in shown for stop in stops)
        assert whole.startswith(shown)
        assert any(whole.startswith(stop, len(shown)) for stop in stops)


@pytest.mark.fault("F78")
def test_the_possible_start_of_a_stop_string_is_not_shown() -> None:
    buffer = StopBuffer(["##END##"])

    assert [buffer.feed("a##"), buffer.feed("E"), buffer.feed("x")] == ["a", "", "##Ex"]


def test_buffered_text_is_shown_at_the_end() -> None:
    buffer = StopBuffer(["##END##"])

    assert [buffer.feed("a##EN"), buffer.flush(), buffer.flush()] == ["a", "##EN", ""]


def test_the_earlier_of_two_stop_strings_ends_the_text() -> None:
    buffer = StopBuffer(["later", "first"])

    assert buffer.feed("a first and later") == "a "
    assert buffer.matched == "first"


def test_the_longer_of_two_stop_strings_at_the_same_position_is_reported() -> None:
    buffer = StopBuffer(["\n", "\n\n"])

    assert buffer.feed("a\n\nb") == "a"
    assert buffer.matched == "\n\n"


def test_the_stop_check_finds_the_token_that_completes_a_stop_string() -> None:
    stop = StopStrings(Detokenizer(TOY), ["日b"])

    assert stop.cut(byte_ids(b"a\xe6\x97")) is None
    assert stop.cut(byte_ids(b"\xa5bcd")) == 2
    assert stop.matched == "日b"


@pytest.mark.fault("F91")
@pytest.mark.parametrize("stop", ["<|im_end|>", "b<|im_end|>", "<|im_end|>c", "b<|im_end|>c", "<|im_end|><|im_start|>"])
def test_a_stop_string_may_contain_special_tokens(stop: str) -> None:
    end, start = token_id("<|im_end|>"), token_id("<|im_start|>")
    ids = [*byte_ids("ab"), end, *([start] if "start" in stop else []), *byte_ids("c"), *byte_ids("d")]
    check = StopStrings(Detokenizer(TOY), [stop])

    num_kept = check.cut(ids)
    answer = answer_of(with_text([a_round(0, ids[:num_kept], num_kept or 0, None)], Detokenizer(TOY), [stop]))

    assert num_kept == 2 + stop.count("<|") + ("c" in stop.removeprefix("b"))
    assert check.matched == stop
    assert answer == ("a" if stop.startswith("b") else "ab")


@pytest.mark.fault("F91")
def test_the_letters_of_a_special_token_end_the_text_too() -> None:
    check = StopStrings(Detokenizer(TOY), ["<|im_end|>"])

    assert check.cut(byte_ids("ab<|im_end|>c")) == 12


@pytest.mark.fault("F91")
def test_a_special_token_that_ends_nothing_is_not_shown() -> None:
    stops = ["<|im_end|>zz", "never"]
    ids = [*byte_ids("a"), token_id("<|im_end|>"), *byte_ids("b")]

    assert StopStrings(Detokenizer(TOY), stops).cut(ids) is None
    assert answer_of(with_text([a_round(0, ids, 3, None), Finish("length")], Detokenizer(TOY), stops)) == "ab"


# --- with_text ------------------------------------------------------------------------------------------------------


def a_round(index: int, draft: Sequence[int], num_accepted: int, target: int | None) -> Round:
    return Round(index, tuple(draft), num_accepted, target, 0, 0.0, 0.0, 0.0)


def answer_of(events: Iterable[TextEvent]) -> str:
    kept = [e.kept if isinstance(e, RoundText) else e.text for e in events if isinstance(e, (RoundText, FinalText))]
    return "".join(kept)


def states_of(event: TextEvent) -> list[tuple[str, str]]:
    assert isinstance(event, RoundText)
    return [(piece.text, piece.state.value) for piece in event.pieces]


def test_a_rejected_draft_has_a_rejected_token_then_discarded_ones_then_the_correction() -> None:
    (event,) = with_text([a_round(0, byte_ids("abcd"), 1, BYTES[ord("x")])], Detokenizer(TOY))

    assert states_of(event) == [
        ("a", "accepted"),
        ("b", "rejected"),
        ("c", "discarded"),
        ("d", "discarded"),
        ("x", "correction"),
    ]


def test_the_targets_token_is_a_bonus_after_an_accepted_draft_and_plain_without_a_draft() -> None:
    rounds = [a_round(0, byte_ids("ab"), 2, BYTES[ord("c")]), a_round(1, [], 0, BYTES[ord("d")])]

    first, second = with_text(rounds, Detokenizer(TOY))

    assert states_of(first)[-1] == ("c", "bonus")
    assert states_of(second) == [("d", "target")]


def test_a_draft_that_ends_the_text_is_not_followed_by_a_target_token() -> None:
    (event,) = with_text([a_round(0, byte_ids("ab"), 2, None)], Detokenizer(TOY))

    assert [state for _, state in states_of(event)] == ["accepted", "accepted"]


@pytest.mark.fault("F75")
def test_a_rejected_token_is_decoded_in_its_context() -> None:
    first, second = byte_ids("é")

    (event,) = with_text([a_round(0, [first, second], 1, byte_ids(b"\xa8")[0])], Detokenizer(TOY))

    assert states_of(event) == [("", "accepted"), ("é", "rejected"), ("è", "correction")]


def test_other_events_pass_unchanged() -> None:
    events = [Prefill(3, 0, 0.1, 0.0), Notice("draft_dropped", "reason")]

    assert list(with_text(events, Detokenizer(TOY))) == events


def test_the_final_text_contains_an_incomplete_character() -> None:
    *_, last = with_text([a_round(0, [], 0, BYTES[0xC3]), Finish("length")], Detokenizer(TOY))

    assert last == FinalText("\ufffd", Finish("length"))


def test_the_final_text_contains_the_start_of_an_incomplete_stop_string() -> None:
    *_, last = with_text([a_round(0, [], 0, BYTES[ord("#")]), Finish("stop")], Detokenizer(TOY), ["##"])

    assert last == FinalText("#", Finish("stop"))


def test_a_rejected_token_with_a_stop_string_does_not_end_the_text() -> None:
    rounds = [a_round(0, byte_ids("a#"), 1, BYTES[ord("b")]), Finish("length")]

    assert answer_of(with_text(rounds, Detokenizer(TOY), ["#"])) == "ab"


@st.composite
def rounds_of_a_text(draw: st.DrawFn) -> tuple[list[int], list[Round]]:
    """Generates ids in rounds of any shape, with any rejected tokens between them."""
    ids = draw(st.lists(st.integers(0, NUM_TOY - 1), min_size=1, max_size=24))
    rounds: list[Round] = []
    at = 0
    while at < len(ids):
        num_accepted = draw(st.integers(0, min(4, len(ids) - at - 1)))
        rejected = draw(st.lists(st.integers(0, NUM_TOY - 1), max_size=3))
        target = ids[at + num_accepted]
        rounds.append(a_round(len(rounds), [*ids[at : at + num_accepted], *rejected], num_accepted, target))
        at += num_accepted + 1
    return ids, rounds


@given(rounds_of_a_text())
@settings(max_examples=num_examples(200))
def test_kept_pieces_and_the_final_text_join_to_the_answer(text: tuple[list[int], list[Round]]) -> None:
    ids, rounds = text

    events = list(with_text([*rounds, Finish("length")], Detokenizer(TOY)))

    assert answer_of(events) == decoded(ids)
    shown = [e for e in events if isinstance(e, RoundText)]
    assert [[p.id for p in e.pieces if p.state.is_kept] for e in shown] == [list(r.token_ids) for r in rounds]
    assert all(sum(p.state is TokenState.REJECTED for p in e.pieces) == e.round.num_rejected for e in shown)
    assert all(sum(p.state is TokenState.DISCARDED for p in e.pieces) == e.round.num_discarded for e in shown)


@given(UNICODE.filter(bool), st.integers(1, 5), st.data())
def test_rounds_and_the_engine_agree_on_where_a_stop_string_ends_the_text(
    text: str, width: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : data.draw(st.integers(start + 1, len(text)))]
    ids = byte_ids(text)
    check = StopStrings(Detokenizer(TOY), [stop])
    rounds: list[Round] = []
    for at in range(0, len(ids), width):
        kept = ids[at : at + width][: check.cut(ids[at : at + width])]
        rounds.append(a_round(len(rounds), kept, len(kept), None))
        if check.matched:
            break

    answer = answer_of(with_text([*rounds, Finish("stop")], Detokenizer(TOY), [stop]))

    assert answer == text[: text.index(stop)]
