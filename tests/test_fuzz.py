"""Runs each fuzzer for a second from a fixed seed; `python -m tests.fuzz TARGET` runs ten minutes from a new one."""

from __future__ import annotations

import random

import pytest

from specgen.loading.gguf import header as gguf_scan
from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.fast(without=("gguf",))
def test_a_short_run_finds_nothing(name: str) -> None:
    make, check = TARGETS[name]
    source = random.Random(1)

    for _ in range(1500):
        check(make(source))


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_differ(name: str) -> None:
    make, _ = TARGETS[name]
    source = random.Random(1)

    assert len({make(source) for _ in range(300)}) > 150


def test_a_planted_bug_is_reported_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: object) -> None:
        raise IndexError("beyond the end")

    monkeypatch.setattr("tests.fuzz.targets.scan_gguf", careless)
    assert gguf_scan.scan_gguf is not careless

    with pytest.raises(AssertionError, match=r"gguf, seed 3, input 0: IndexError\('beyond the end'\)\n47475546"):
        fuzz("gguf", 5.0, 3)
