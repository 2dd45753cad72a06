"""Chat sessions as JSON: what is encoded is decoded, and damage is an error or harmless."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.storage.transcript import ChatMessage, SavedModel, Transcript, TranscriptError, from_json, to_json
from tests.profiles import num_examples

ANY_TEXT = st.text(st.characters(), max_size=30)  # lone surrogates, too
SCALARS = st.dictionaries(
    ANY_TEXT, st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | ANY_TEXT, max_size=4
)
MESSAGES = st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), ANY_TEXT, ANY_TEXT, st.booleans(), SCALARS)
MODELS = st.builds(SavedModel, ANY_TEXT, ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT)
TRANSCRIPTS = st.builds(
    Transcript,
    st.lists(MESSAGES, max_size=5).map(tuple),
    st.none() | ANY_TEXT,
    MODELS,
    ANY_TEXT,
    st.none() | MODELS,
    SCALARS,
    ANY_TEXT,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def make_transcript(*texts: str) -> Transcript:
    messages = tuple(ChatMessage("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))
    return Transcript(messages, None, SavedModel("toy"), "lookup", None, {}, "2026-01-01T00:00:00+00:00")


SESSION = to_json(make_transcript("old", "reply", "new"))


@given(TRANSCRIPTS)
def test_any_session_comes_back_as_it_was(transcript: Transcript) -> None:
    assert from_json(to_json(transcript)) == transcript


@given(TRANSCRIPTS)
def test_a_session_file_contains_no_terminal_control_sequences(transcript: Transcript) -> None:
    assert all(byte == 0x0A or 0x20 <= byte < 0x80 for byte in to_json(transcript))


def test_a_session_of_version_0_1_0_loads() -> None:
    data = (
        b'{"schema_version": 1, "specgen_version": "0.1.0", "created": "2026-01-01T00:00:00+00:00", "target": {"name":'
        b' "toy", "quant": "auto", "revision": null, "ran_as": "toy nf4"}, "drafter": "lookup", "draft": null, '
        b'"settings": {"temperature": 0.5}, "system": "Be brief.", "messages": [{"role": "user", "content": "hi"}, '
        b'{"role": "assistant", "content": "ho", "thinking": "hm", "interrupted": true, "stats": {"tokens": 3}}]}'
    )

    assert from_json(data) == Transcript(
        (ChatMessage("user", "hi"), ChatMessage("assistant", "ho", "hm", True, {"tokens": 3})),
        "Be brief.",
        SavedModel("toy", ran_as="toy nf4"),
        "lookup",
        None,
        {"temperature": 0.5},
        "2026-01-01T00:00:00+00:00",
    )


@settings(max_examples=num_examples(200))
@given(data=st.data())
@pytest.mark.fault("F64")
def test_any_damage_is_a_transcript_error_or_harmless(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        damaged = SESSION[: data.draw(st.integers(0, len(SESSION) - 2))]
    elif kind == "flip":
        place = data.draw(st.integers(0, len(SESSION) - 1))
        damaged = SESSION[:place] + bytes([data.draw(st.integers(0, 255))]) + SESSION[place + 1 :]
    else:
        damaged = data.draw(st.binary(max_size=60))
    with suppress(TranscriptError):
        assert from_json(damaged).messages is not None


@given(
    changes=st.dictionaries(
        st.sampled_from(["schema_version", "target", "draft", "drafter", "settings", "system", "messages", "created"]),
        JSON,
    )
)
def test_any_wrong_value_is_a_transcript_error_or_harmless(changes: dict[str, object]) -> None:
    document = {**json.loads(SESSION), **changes}
    with suppress(TranscriptError):
        assert from_json(json.dumps(document).encode()).messages is not None


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "JSON"),
        (b"{}", "schema_version"),
        (b'{"schema_version": true}', "schema_version"),
        (b'{"schema_version": 2}', "schema 2"),
        (b'{"schema_version": 1, "messages": [{"role": "system", "content": ""}]}', "'system'"),
        (b'{"schema_version": 1, "messages": 3}', "messages"),
    ],
)
def test_an_invalid_document_is_refused_with_the_part_that_is_wrong(data: bytes, named: str) -> None:
    with pytest.raises(TranscriptError, match=named):
        from_json(data)
