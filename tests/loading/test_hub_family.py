"""Finding smaller models of one family on the hub, by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from specgen.core.errors import ModelNotFoundError
from specgen.loading import hub_family
from specgen.loading.hub_family import family_members, size_in


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub lists."""
    names: list[str] = []

    class Api:
        def list_models(self, **_: Any) -> list[Any]:
            return [SimpleNamespace(id=name) for name in names]

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(hub_family, "is_reachable", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return names


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 1.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("google/gemma-3-270m", 270e6),
        ("org/Model-A3B", None),
        ("gpt2", None),
    ],
)
def test_a_size_is_read_from_a_name(name: str, size: float | None) -> None:
    assert size_in(name) == size


def test_only_smaller_models_that_differ_in_the_size_alone_are_members(listed: list[str]) -> None:
    listed += [
        *("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B-Instruct"),
        *("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "Qwen/Qwen2.5-Coder-0.5B-Instruct", "other/Qwen2.5-0.5B-Instruct"),
    ]

    found = family_members("Qwen/Qwen2.5-3B-Instruct", offline=False)

    assert [(one.name, one.num_parameters) for one in found] == [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
    ]


@pytest.mark.parametrize("name", ["", "/home/me/qwen-1.5b", "gpt2", "org/model"])
def test_what_is_no_sized_hub_model_has_no_family(name: str) -> None:
    assert family_members(name, offline=False) == []


def test_offline_is_said(listed: list[str]) -> None:
    with pytest.raises(ModelNotFoundError, match="offline"):
        family_members("Qwen/Qwen2.5-3B-Instruct", offline=True)
