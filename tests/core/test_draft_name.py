from __future__ import annotations

import pytest

from specgen.core.draft_name import DraftName
from specgen.core.settings import ModelSettings, PairSettings


@pytest.mark.parametrize(
    ("text", "kind", "model", "has_lookup"),
    [
        ("auto", "auto", None, True),
        ("lookup", "lookup", None, True),
        ("none", "none", None, False),
        ("mtp", "model", "mtp", False),
        ("Qwen/Qwen2.5-0.5B", "model", "Qwen/Qwen2.5-0.5B", False),
        ("Qwen/Qwen2.5-0.5B+lookup", "model+lookup", "Qwen/Qwen2.5-0.5B", True),
        ("mtp+lookup", "model+lookup", "mtp", True),
        ("a+lookup+lookup", "model+lookup", "a+lookup", True),
        # Both contain lookup already.
        ("auto+lookup", "auto", None, True),
        ("lookup+lookup", "lookup", None, True),
        # No drafter and lookup exclude each other, so it names a model, which is then missing.
        ("none+lookup", "model+lookup", "none", True),
        ("", "model", "", False),
    ],
)
def test_a_name_says_what_drafts(text: str, kind: str, model: str | None, has_lookup: bool) -> None:
    name = DraftName(text)

    assert (name.kind, name.model, name.has_lookup) == (kind, model, has_lookup)
    assert str(name) == text


@pytest.mark.parametrize(
    ("text", "loaded"),
    [("m+lookup", ModelSettings("m", "int8")), ("auto", ModelSettings("", "int8")), ("none", None), ("lookup", None)],
)
def test_a_draft_model_is_loaded_like_the_options_say(text: str, loaded: ModelSettings | None) -> None:
    pair = PairSettings(ModelSettings("t"), lookup_texts=("text",))

    made = pair.with_draft(DraftName(text), ModelSettings("ignored", "int8"))

    assert (made.target, made.lookup_texts) == (pair.target, pair.lookup_texts)
    assert (made.drafter, made.draft) == (DraftName(text).kind, loaded)
