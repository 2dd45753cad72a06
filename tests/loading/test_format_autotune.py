"""The format of a draft's weights is the one measured fastest: with times of our own, since every machine differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.settings import ModelSettings
from specgen.loading import placement
from specgen.loading.config_check import ModelConfig
from specgen.loading.format_autotune import Layer, decide, fastest_format, measured_seconds
from specgen.storage.cost_store import CostStore

WIDTHS = (896, 4864)
LAYER = Layer(*WIDTHS, "bfloat16", "cpu")
ALL = ("none", "int8", "nf4")
FACTS = ModelConfig("qwen2", 151936, 32768, None, "bfloat16", 494_032_768, 988_065_536, True, WIDTHS)


class Stopwatch:
    """Says what it is told, and counts how often it is asked."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.num_asked = seconds, 0

    def __call__(self, formats: Sequence[str], layer: Layer) -> dict[str, float]:
        self.num_asked += 1
        return {name: self.seconds[name] for name in formats if name in self.seconds}


def test_the_fastest_is_taken_and_the_reason_is_told(tmp_path: Path) -> None:
    watch = Stopwatch(none=0.004, int8=0.0021, nf4=0.0113)

    found = fastest_format(ALL, LAYER, times=CostStore(tmp_path), measure=watch)

    assert found[0] == "int8"
    assert [figure in found[1] for figure in ("int8 2.10", "none 4.00", "nf4 11.30")] == [True, True, True]


def test_a_format_that_is_hardly_faster_is_not_worth_its_rounding() -> None:
    assert decide({"none": 1.0, "nf4": 0.97})[0] == "none"
    assert decide({"none": 1.0, "nf4": 0.94})[0] == "nf4"


def test_a_format_that_fails_here_is_left_out(tmp_path: Path) -> None:
    watch = Stopwatch(none=1.0, nf4=0.5)

    assert fastest_format(ALL, LAYER, times=CostStore(tmp_path), measure=watch)[0] == "nf4"
    assert decide({})[0] == "none"


def test_it_is_measured_once_per_widths_and_compute_type(tmp_path: Path) -> None:
    store, watch = CostStore(tmp_path), Stopwatch(none=1.0, int8=0.5, nf4=0.7)

    for _ in range(3):
        assert fastest_format(ALL, LAYER, times=store, measure=watch)[0] == "int8"
    assert watch.num_asked == 1
    fastest_format(ALL, replace(LAYER, dtype="float32"), times=store, measure=watch)
    fastest_format(ALL, Layer(1536, 8960, "bfloat16", "cpu"), times=store, measure=watch)

    assert watch.num_asked == 3


def test_nothing_is_measured_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    watch = Stopwatch(none=1.0)

    found = fastest_format(["none"], LAYER, times=CostStore(tmp_path), measure=watch)

    assert (found, watch.num_asked) == (("none", ""), 0)


def test_real_layers_are_timed_in_every_format_this_machine_has() -> None:
    seconds = measured_seconds(["none", "int8"], Layer(64, 128, "float32", "cpu"))

    assert set(seconds) <= {"none", "int8"}
    assert seconds["none"] > 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Formats that placement had to choose among; the last one is said to be the fastest."""
    found: list[list[str]] = []

    def choose(formats: Sequence[str], layer: Layer, times: object) -> tuple[str, str]:
        found.append(list(formats))
        return formats[-1], "why"

    monkeypatch.setattr(placement, "fastest_format", choose)
    monkeypatch.setattr(placement, "check_bitsandbytes", lambda quant, device: None)
    return found


@pytest.mark.parametrize(
    ("flags", "has_bytes", "formats"),
    [
        ({"avx2"}, True, ["none", "int8"]),
        ({"avx2", "avx512_bf16"}, False, ["none", "nf4"]),
        ({"avx2", "avx512_bf16"}, True, ["none", "int8", "nf4"]),
    ],
)
def test_a_draft_on_a_cpu_chooses_among_what_has_kernels_there(
    monkeypatch: pytest.MonkeyPatch, asked: list[list[str]], flags: set[str], has_bytes: bool, formats: list[str]
) -> None:
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: has_bytes)

    chosen = placement.choose_placement(ModelSettings("m", device="cpu"), FACTS, from_gguf=False, role="draft")

    assert asked == [formats]
    assert chosen.quant == formats[-1]
    assert "why" in chosen.remarks


@pytest.mark.parametrize(
    ("settings", "facts", "role"),
    [
        (ModelSettings("m", device="cpu"), FACTS, "target"),
        (ModelSettings("m", device="cpu", quant="none"), FACTS, "draft"),
        (ModelSettings("m", device="cpu"), replace(FACTS, quant_method="gptq"), "draft"),
        (ModelSettings("m", device="cpu"), replace(FACTS, num_parameters=10_000), "draft"),
        (ModelSettings("m", device="cpu"), replace(FACTS, widths=None), "draft"),
    ],
    ids=["target", "asked-for", "ready-quantized", "tiny", "unknown-widths"],
)
def test_what_is_no_large_unquantized_draft_is_not_measured(
    asked: list[list[str]], settings: ModelSettings, facts: ModelConfig, role: str
) -> None:
    placement.choose_placement(settings, facts, from_gguf=False, role=role)  # type: ignore[arg-type]

    assert asked == []
