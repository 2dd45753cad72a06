"""Translating between two tokenizers: what is read is the text, what is proposed stays the same."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from specgen.core.errors import DraftError
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.translated import SharedTokenDrafter, SharedTokens, TextDrafter, TranslatedModel
from specgen.engine.enumeration import TableModel
from specgen.text.token_table import TokenTable
from specgen.text.translation import Translation, shared_ids
from tests.fakes import ids_of, run_events, sampler
from tests.profiles import num_examples
from tests.toys import toy_tokenizer

LETTERS = " abcé日\n"
Kind = str


def tokenizer_of(kind: Kind, merges: Sequence[tuple[int, int]], added: Sequence[str] = ()) -> Any:
    """Makes a tokenizer of bytes and the merges, which are pairs of positions among the tokens made so far."""
    raw = byte_level(merges) if kind == "byte-level" else metaspace(merges)
    raw.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    raw.add_tokens([AddedToken(text, special=False) for text in added])
    return SimpleNamespace(backend_tokenizer=raw, eos_token_id=raw.token_to_id("</s>"))


def byte_level(merges: Sequence[tuple[int, int]]) -> Tokenizer:
    spelled = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(letter)[0][0] for letter in LETTERS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(merged(alphabet, sorted({character for text in spelled for character in text}), merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def metaspace(merges: Sequence[tuple[int, int]]) -> Tokenizer:
    letters = ["▁", *LETTERS[1:]]
    model = merged([*(f"<0x{byte:02X}>" for byte in range(256)), *letters], letters, merges, byte_fallback=True)
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


def merged(tokens: Sequence[str], letters: Sequence[str], merges: Sequence[tuple[int, int]], **options: Any) -> BPE:
    known, made = list(letters), []
    for first, second in merges:
        pair = known[first % len(known)], known[second % len(known)]
        if "".join(pair) not in known:
            known.append("".join(pair))
            made.append(pair)
    vocabulary = dict.fromkeys([*tokens, *known])
    return BPE({token: index for index, token in enumerate(vocabulary)}, made, **options)


merge_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=14)
added_tokens = st.lists(st.sampled_from(["<tool>", "ab ", "abc", "\n\n"]), max_size=2, unique=True)
tokenizers = st.builds(tokenizer_of, st.sampled_from(["byte-level", "metaspace"]), merge_lists, added_tokens)
texts = st.text(LETTERS, max_size=14)


def text_of(table: TokenTable, ids: Sequence[int]) -> bytes:
    return b"".join(table.bytes[id_] for id_ in ids)


def is_reading(found: bytes, text: bytes) -> bool:
    """Returns whether this is the text; a tokenizer with word marks may put one in front."""
    return found in (text, b" " + text)


@given(tokenizer=tokenizers, text=texts)
@settings(max_examples=num_examples(60), deadline=None)
def test_a_table_has_the_bytes_that_the_decoder_writes(tokenizer: Any, text: str) -> None:
    table = TokenTable(tokenizer)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    assert is_reading(text_of(table, ids), text.encode())


@given(target=tokenizers, draft=tokenizers, first=texts, second=texts, data=st.data())
@settings(max_examples=num_examples(120), deadline=None)
def test_a_text_that_grows_and_shrinks_is_read_as_it_is(
    target: Any, draft: Any, first: str, second: str, data: st.DataObject
) -> None:
    of_target, of_draft = TokenTable(target), TokenTable(draft)
    translation = Translation(of_target, of_draft)
    for text in (first, second):
        ids = target.backend_tokenizer.encode(text).ids
        for length in data.draw(st.lists(st.integers(0, len(ids)), max_size=6)):
            read = translation.draft_ids(ids[:length])

            whole = text_of(of_target, ids[:length])
            if whole:
                assert is_reading(text_of(of_draft, read), whole)


@given(target=tokenizers, draft=tokenizers, before=texts, after=texts)
@settings(max_examples=num_examples(120), deadline=None)
def test_all_complete_characters_that_a_draft_wrote_are_proposed(
    target: Any, draft: Any, before: str, after: str
) -> None:
    of_target, of_draft = TokenTable(target), TokenTable(draft)
    translation = Translation(of_target, of_draft)
    ids = target.backend_tokenizer.encode("a" + before).ids
    written = of_draft.extend(translation.draft_ids(ids), after.encode())

    for length in range(1, len(written) + 1):
        proposed, has_ended = translation.target_ids(ids, written[:length])
        complete = text_of(of_draft, written[:length]).decode(errors="ignore")
        assert (text_of(of_target, proposed), has_ended) == (complete.encode(), False)
    ended, has_ended = translation.target_ids(ids, [*written, of_draft.end_id or 0])
    assert has_ended
    assert text_of(of_target, ended) == after.encode() + b"</s>"


def test_an_added_token_takes_no_space_that_a_draft_wrote_in_front_of_it() -> None:
    """The tokenizer reads the mark that it puts in front of every text as a part of the token `\\n\\n`, too."""
    table = TokenTable(tokenizer_of("metaspace", [], ["\n\n"]))
    before = table.extend([], b" a")

    assert text_of(table, table.extend(before, b" \n\n")) == b" \n\n"


@given(target=tokenizers, draft=tokenizers)
@settings(max_examples=num_examples(60), deadline=None)
def test_shared_tokens_mean_the_same_bytes(target: Any, draft: Any) -> None:
    of_target, of_draft = TokenTable(target), TokenTable(draft)

    pairs = shared_ids(of_target, of_draft)

    assert pairs
    assert len({id_ for id_, _ in pairs}) == len({id_ for _, id_ in pairs}) == len(pairs)
    for target_id, draft_id in pairs:
        assert of_target.bytes[target_id] == of_draft.bytes[draft_id]
        assert (target_id in of_target.special) == (draft_id in of_draft.special)
    ordinary = {text for text in of_target.by_bytes if text in of_draft.by_bytes}
    assert len(pairs) == len(ordinary) + 2


@given(target=tokenizers, draft=tokenizers, prompt=texts, kind=st.sampled_from(["shared", "text"]), data=st.data())
@settings(max_examples=num_examples(60), deadline=None)
def test_greedy_text_is_the_targets_after_rollbacks_at_every_border(
    target: Any, draft: Any, prompt: str, kind: str, data: st.DataObject
) -> None:
    """The draft's table asserts that its cache is a prefix of what it reads next."""
    of_target, of_draft = TokenTable(target), TokenTable(draft)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 3)))
    rows, own_rows = (torch.randn(t.num_tokens, t.num_tokens, generator=generator) for t in (of_target, of_draft))
    pairs = shared_ids(of_target, of_draft)
    if data.draw(st.booleans()):
        # A draft that often agrees: its choice after a shared token is the target's, where it can write it.
        draft_id = dict(pairs)
        for target_id, own_id in pairs:
            following = draft_id.get(int(rows[target_id].argmax()))
            if following is not None:
                own_rows[own_id, following] = 99.0
    target_ids, draft_ids = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    shared = SharedTokens(target_ids, draft_ids) if kind == "shared" else None
    model = TranslatedModel(TableModel(own_rows), Translation(of_target, of_draft), shared)
    drafter = (SharedTokenDrafter if kind == "shared" else TextDrafter)(model, of_target.num_tokens, sampler())
    ids = target.backend_tokenizer.encode(prompt).ids or [0]
    options = {"max_new_tokens": 12, "num_draft_tokens": data.draw(st.integers(1, 5)), "strict": True}

    found = ids_of(run_events(TableModel(rows), drafter, ids, **options))
    drafter.rewind(data.draw(st.integers(0, len(ids) + 12)))
    other = [*ids, *found[: data.draw(st.integers(0, 12))], data.draw(st.integers(0, of_target.num_tokens - 1))]
    again = ids_of(run_events(TableModel(rows), drafter, other, **options))

    assert found == alone(rows, ids)
    assert again == alone(rows, other)


def alone(rows: torch.Tensor, ids: Sequence[int]) -> list[int]:
    text = list(ids)
    for _ in range(12):
        text.append(int(rows[text[-1]].argmax()))
    return text[len(ids) :]


def test_spellings_of_one_token_are_shared() -> None:
    of_target = TokenTable(tokenizer_of("byte-level", [(0, 1), (3, 4)]))
    of_draft = TokenTable(tokenizer_of("metaspace", []))
    texts_shared = {of_target.bytes[id_] for id_, _ in shared_ids(of_target, of_draft)}

    assert {b" ", b"a", b"\n", b"\xc3", b"<s>", b"</s>"} <= texts_shared


def test_control_tokens_and_ordinary_text_are_never_one_token() -> None:
    special, plain = tokenizer_of("byte-level", []), tokenizer_of("byte-level", [], ["<think>"])
    special.backend_tokenizer.add_special_tokens([AddedToken("<think>", special=True)])
    of_target, of_draft = TokenTable(special), TokenTable(plain)
    think = special.backend_tokenizer.token_to_id("<think>")

    assert think not in dict(shared_ids(of_target, of_draft))


def test_end_tokens_are_shared_by_their_role() -> None:
    target = toy_tokenizer()
    of_target, of_draft = TokenTable(target), TokenTable(tokenizer_of("metaspace", []))

    assert dict(shared_ids(of_target, of_draft))[target.eos_token_id] == of_draft.end_id


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_control_tokens_of_the_target_are_read_as_the_drafts_own(kind: Kind) -> None:
    target, draft = tokenizer_of("byte-level", []), tokenizer_of(kind, [])
    of_target, of_draft = TokenTable(target), TokenTable(draft)

    read = Translation(of_target, of_draft).draft_ids(target.backend_tokenizer.encode("<s>ab</s>a").ids)

    assert [id_ for id_ in read if id_ in of_draft.special] == [of_draft.special_ids["<s>"], of_draft.end_id]


def test_a_decoder_that_is_not_known_is_asked_token_by_token() -> None:
    tokenizer = tokenizer_of("metaspace", [(1, 2)])
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece("##", cleanup=False)

    assert TokenTable(tokenizer).by_bytes[b" ab"] == tokenizer.backend_tokenizer.token_to_id("ab")


BORDER_TEXT = " abé日\n ab"
BORDER_KINDS = ("byte-level", "metaspace")
BORDER_MERGES = ([(1, 2), (0, 8)], [(0, 1), (2, 3), (8, 2)])
BORDER_PAIRS = [
    (tokenizer_of(target, merges, added), tokenizer_of(draft, other, ["ab "]))
    for added in (["abc", "\n\n"], [])
    for target, draft in itertools.product(BORDER_KINDS, repeat=2)
    for merges, other in (BORDER_MERGES, BORDER_MERGES[::-1])
]
# Further tokens of the target add borders within the draft's tokens to those of the second half.
BORDER_CASES = [
    *BORDER_PAIRS[: len(BORDER_PAIRS) // 2],
    *(pytest.param(*pair, marks=pytest.mark.thorough) for pair in BORDER_PAIRS[len(BORDER_PAIRS) // 2 :]),
]


def check_every_border(target: Any, draft: Any) -> None:
    """Draws the text back from its end to each border and on to each other one, in one translation and one cache."""
    of_target, of_draft = TokenTable(target), TokenTable(draft)
    ids = target.backend_tokenizer.encode(BORDER_TEXT).ids
    generator = torch.Generator().manual_seed(1)
    inner = TableModel(torch.randn(of_draft.num_tokens, of_draft.num_tokens, generator=generator))
    model = TranslatedModel(inner, Translation(of_target, of_draft))
    drafter = TextDrafter(model, of_target.num_tokens, sampler())
    for first, second in itertools.product(range(1, len(ids) + 1), repeat=2):
        for length in (len(ids), first, second):
            drafter.rewind(length)
            drafter.propose(ids[:length], 3, FixedLength())
            # What the model was fed: the text, then what it wrote.
            fed = text_of(of_draft, inner.cached_ids)
            assert any(fed.startswith(mark + text_of(of_target, ids[:length])) for mark in (b"", b" "))


@pytest.mark.parametrize(("target", "draft"), BORDER_CASES)
@pytest.mark.fast("target[3456]-*")
def test_the_draft_reads_the_text_after_a_rollback_to_every_border(target: Any, draft: Any) -> None:
    check_every_border(target, draft)


def tokens_kept_across_the_border(plant: pytest.MonkeyPatch) -> None:
    plant.setattr("specgen.text.translation.bisect_right", lambda ends, position: bisect_right(ends, position) + 1)


def a_cache_that_is_never_cut(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(TranslatedModel, "_cut", lambda self, read: None)


@pytest.mark.parametrize("bug", [tokens_kept_across_the_border, a_cache_that_is_never_cut])
def test_a_planted_bug_at_a_border_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)

    with pytest.raises((AssertionError, DraftError)):
        check_every_border(*BORDER_PAIRS[0])


def test_a_planted_bug_that_proposes_parts_of_characters_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.text.translation.num_incomplete", lambda _: 0)
    target, draft = tokenizer_of("byte-level", []), tokenizer_of("byte-level", [])
    test = test_all_complete_characters_that_a_draft_wrote_are_proposed

    with pytest.raises(AssertionError):
        test.hypothesis.inner_test(target, draft, "", "é")  # type: ignore[attr-defined]
