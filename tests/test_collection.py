"""Checks what leaves the fast lane, and which of its tests are reported as long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.collection import THOROUGH_SECONDS, long_tests, mark_thorough


class Parameter:
    """A collected test with one set of parameters."""

    def __init__(self, name: str, mark: pytest.MarkDecorator) -> None:
        self.parent, self.function, self.callspec = "file", "test", SimpleNamespace(id=name)
        self.mark, self.markers = mark.mark, [mark.name]

    def get_closest_marker(self, name: str) -> Any:
        return self.mark if self.mark.name == name else None

    def add_marker(self, name: str) -> None:
        self.markers.append(name)


def fast_of(names: list[str], mark: pytest.MarkDecorator) -> list[str]:
    items: list[Any] = [Parameter(name, mark) for name in names]
    mark_thorough(items)
    return [item.callspec.id for item in items if "thorough" not in item.markers]


NAMES = ["llama-1", "llama-8", "gemma3-1", "gemma3-8"]


def test_parameters_that_the_marker_names_stay_in_the_fast_lane() -> None:
    assert fast_of(NAMES, pytest.mark.fast("llama-*", "gemma3-8")) == ["llama-1", "llama-8", "gemma3-8"]


def test_parameters_that_it_leaves_out_do_not() -> None:
    assert fast_of(NAMES, pytest.mark.fast(without=("*-8",))) == ["llama-1", "gemma3-1"]
    assert fast_of(NAMES, pytest.mark.fast("llama-*", without=("*-8",))) == ["llama-1"]


def test_one_parameter_always_stays() -> None:
    assert fast_of(NAMES, pytest.mark.fast("qwen3-*")) == ["llama-1"]
    assert fast_of(NAMES, pytest.mark.fast(without=("*",))) == ["llama-1"]


def test_a_test_without_the_marker_stays() -> None:
    assert fast_of(NAMES, pytest.mark.process) == NAMES


def report(name: str, seconds: float) -> Any:
    return SimpleNamespace(nodeid=name, duration=seconds)


def test_the_time_of_a_test_includes_its_fixtures() -> None:
    most = 0.9 * THOROUGH_SECONDS
    reports = [report("a", most), report("b", most), report("b", most), report("c", 9.0), SimpleNamespace()]

    assert long_tests(reports) == [("c", 9.0), ("b", 2 * most)]
