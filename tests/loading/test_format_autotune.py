"""Choosing a draft's weight format by measurement, with given times, because machines differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specgen.core.settings import ModelSettings
from specgen.loading import format_timing, packed_formats, placement
from specgen.loading.format_autotune import decide, fastest_format
from specgen.loading.format_timing import (
    ROUND,
    FormatTimes,
    TimedLayer,
    measure_formats,
    num_timed_layers,
    round_seconds,
    sample_passes,
    token_seconds,
)
from specgen.loading.resolved_model import ModelConfig, Role
from specgen.storage.cost_store import CostStore
from tests.loading.test_placement import pretend_gpus

WIDTHS = (896, 4864)
LAYER = TimedLayer(*WIDTHS, "bfloat16", "cpu")
ALL = ("none", "int8", "nf4")
CONFIG = ModelConfig("qwen2", 151936, 32768, None, "bfloat16", 494_032_768, 988_065_536, True, WIDTHS)


class FakeMeasure:
    """Returns given times, and counts its calls."""

    def __init__(self, is_steady: bool = True, **seconds: float) -> None:
        self.seconds, self.is_steady, self.num_calls = seconds, is_steady, 0

    def __call__(self, formats: Sequence[str], layer: TimedLayer) -> FormatTimes:
        self.num_calls += 1
        return FormatTimes({name: self.seconds[name] for name in formats if name in self.seconds}, self.is_steady)


def test_the_fastest_format_is_chosen_with_a_reason(tmp_path: Path) -> None:
    measure = FakeMeasure(none=0.004, int8=0.0021, nf4=0.0113)

    quant, reason = fastest_format(ALL, LAYER, measure, CostStore(tmp_path))

    assert quant == "int8"
    assert all(figure in reason for figure in ("int8 2.10", "none 4.00", "nf4 11.30"))


def test_a_format_that_is_hardly_faster_is_not_chosen() -> None:
    assert decide({"none": 1.0, "nf4": 0.97})[0] == "none"
    assert decide({"none": 1.0, "nf4": 0.94})[0] == "nf4"
    assert decide({"none": 2.0, "int8": 1.0, "nf4": 0.97})[0] == "int8"


def test_a_target_is_judged_by_the_seconds_per_token_of_its_rounds() -> None:
    # One token costs 1 in both; three drafted tokens at 0.25 each, and 1 + 0.7 + 0.49 + 0.343 = 2.533 tokens a round.
    seconds = token_seconds({"int8": (1.0, 1.1, 9.0), "nf4": (1.0, 3.0, 9.0)})

    assert seconds["int8"] == pytest.approx((1.1 + 0.75) / 2.533)
    assert seconds["nf4"] == pytest.approx(1.0)
    assert decide(seconds)[0] == "int8"


def test_a_format_that_makes_drafts_dear_is_not_chosen_for_being_fast_at_one_row() -> None:
    seconds = {"none": (2.0, 2.1, 2.2), "nf4": (1.0, 3.5, 5.0)}

    assert min(seconds, key=lambda name: seconds[name][0]) == "nf4"
    # None of its rounds is faster than 1.0 per token; six rows of bfloat16 take (2.2 + 5 * 0.25) / 2.94 = 1.17.
    assert decide(token_seconds(seconds))[0] == "nf4"
    assert decide(token_seconds({"none": (1.2, 1.3, 1.4), "nf4": (1.0, 3.5, 5.0)}))[0] == "none"


def test_a_format_that_fails_is_left_out(tmp_path: Path) -> None:
    measure = FakeMeasure(none=1.0, nf4=0.5)

    assert fastest_format(ALL, LAYER, measure, CostStore(tmp_path))[0] == "nf4"
    assert decide({})[0] == "none"


def test_formats_are_measured_once_per_widths_and_compute_type(tmp_path: Path) -> None:
    store, measure = CostStore(tmp_path), FakeMeasure(none=1.0, int8=0.5, nf4=0.7)

    for _ in range(3):
        assert fastest_format(ALL, LAYER, measure, store)[0] == "int8"
    assert measure.num_calls == 1
    fastest_format(ALL, replace(LAYER, dtype="float32"), measure, store)
    fastest_format(ALL, TimedLayer(1536, 8960, "bfloat16", "cpu"), measure, store)

    assert measure.num_calls == 3


def test_a_single_format_is_not_measured(tmp_path: Path) -> None:
    measure = FakeMeasure(none=1.0)

    choice = fastest_format(["none"], LAYER, measure, CostStore(tmp_path))

    assert (choice, measure.num_calls) == (("none", ""), 0)


@pytest.mark.thorough
def test_real_layers_are_timed_in_every_available_format() -> None:
    seconds = measure_formats(["none", "int8"], TimedLayer(64, 128, "float32", "cpu")).seconds

    assert set(seconds) <= {"none", "int8"}
    assert seconds["none"] > 0
    assert 0 < measure_formats(["none"], TimedLayer(64, 128, "float32", "cpu", "target")).seconds["none"] < math.inf


def test_times_of_a_busy_machine_are_used_but_not_kept(tmp_path: Path) -> None:
    store, busy = CostStore(tmp_path), FakeMeasure(is_steady=False, none=0.014, int8=0.016, nf4=0.015)

    quant, reason = fastest_format(ALL, LAYER, busy, store)
    later, reason_later = fastest_format(ALL, LAYER, FakeMeasure(none=1.0, int8=0.5, nf4=0.7), store)

    assert (quant, later) == ("none", "int8")
    assert "other programs" in reason
    assert "other programs" not in reason_later


class DisturbedClock:
    """A clock by which each pass takes its own time, longer while other programs run.

    Args:
        num_disturbed: Passes that other programs disturb, each by another time.
    """

    def __init__(self, num_disturbed: int) -> None:
        self.now, self.num_disturbed, self.num_passes = 0.0, num_disturbed, 0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.num_passes += 1
            is_disturbed = self.num_passes <= self.num_disturbed
            self.now += seconds * (2 + self.num_passes) if is_disturbed else seconds

        return work


@pytest.mark.parametrize(
    ("num_disturbed", "step", "num_samples"), [(0, 1e-5, 5), (30, 1e-5, 18), (10_000, 1e-5, 40), (10_000, 0.1, 5)]
)
def test_a_disturbed_measurement_is_repeated_for_a_while(num_disturbed: int, step: float, num_samples: int) -> None:
    clock = DisturbedClock(num_disturbed)

    samples = sample_passes({"none": [clock.run(2 * step)], "nf4": [clock.run(step)]}, lambda: None, clock)

    assert [len(times) for runs in samples.values() for times in runs] == [num_samples] * 2


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Lists the formats that placement chose among; the last one is reported as the fastest."""
    choices: list[list[str]] = []

    def choose(formats: Sequence[str], layer: TimedLayer, measure: object, times: object) -> tuple[str, str]:
        choices.append(list(formats))
        return formats[-1], "reason"

    monkeypatch.setattr(placement, "fastest_format", choose)
    monkeypatch.setattr(placement, "check_bitsandbytes", lambda quant, device: None)
    return choices


@pytest.mark.parametrize(
    ("flags", "has_int8", "formats"),
    [
        ({"avx2"}, True, ["none", "int8"]),
        ({"avx2", "avx512_bf16"}, False, ["none", "nf4"]),
        ({"avx2", "avx512_bf16"}, True, ["none", "int8", "nf4"]),
    ],
)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_model_on_a_cpu_chooses_among_the_formats_with_kernels(
    monkeypatch: pytest.MonkeyPatch,
    requested: list[list[str]],
    flags: set[str],
    has_int8: bool,
    formats: list[str],
    role: Role,
) -> None:
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: has_int8)
    monkeypatch.setattr(packed_formats, "may_run_kernels", lambda: False)

    chosen = placement.choose_placement(ModelSettings("m", device="cpu"), CONFIG, from_gguf=False, role=role)

    assert requested == [formats]
    assert chosen.quant == formats[-1]
    assert "reason" in chosen.remarks


def test_a_draft_on_cuda_chooses_between_stored_weights_and_nf4(
    monkeypatch: pytest.MonkeyPatch, requested: list[list[str]]
) -> None:
    pretend_gpus(monkeypatch, 10**11)

    placement.choose_placement(ModelSettings("m"), CONFIG, from_gguf=False, role="draft")

    assert requested == [["none", "nf4"]]


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (ModelSettings("m", device="cpu", quant="none"), CONFIG),
        (ModelSettings("m", device="cpu"), replace(CONFIG, quant_method="gptq")),
        (ModelSettings("m", device="cpu"), replace(CONFIG, num_parameters=10_000)),
        (ModelSettings("m", device="cpu"), replace(CONFIG, widths=None)),
    ],
    ids=["requested", "quantized", "tiny", "unknown-widths"],
)
def test_only_large_unquantized_models_are_measured(
    requested: list[list[str]], settings: ModelSettings, config: ModelConfig, role: Role
) -> None:
    placement.choose_placement(settings, config, from_gguf=False, role=role)

    assert requested == []


def test_a_format_that_does_not_fit_the_memory_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, requested: list[list[str]]
) -> None:
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: True)
    monkeypatch.setattr(placement, "free_bytes", lambda device: int(1.3 * CONFIG.num_parameters))

    placement.choose_placement(ModelSettings("m", device="cpu"), CONFIG, from_gguf=False)

    assert requested == [["int8", "nf4"]]


class FakeTimer:
    """Runs the work, and returns given seconds by its rows."""

    def __init__(self, *seconds: tuple[float, float, float]) -> None:
        self.remaining = list(seconds)

    def seconds(self, works: Sequence[Callable[[], None]]) -> list[float]:
        assert len(works) == len(ROUND)
        for work in works:
            work()
        return list(self.remaining.pop(0))


TIMED = TimedLayer(64, 128, "float32", "cpu")


def test_a_round_decides_on_cuda_by_passes_of_one_row_and_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_timing, "MAX_LAYERS", 2)

    found = round_seconds(["none", "int8"], TIMED, FakeTimer((1.0, 1.0, 1.0), (0.7, 8.0, 12.0)))

    assert found["none"] == pytest.approx(1.0 / 2)
    assert found["int8"] == pytest.approx((3.5 * 0.7 + 0.25 * 8 + 0.25 * 12) / 4 / 2)
    assert decide(found)[0] == "none"


def test_a_format_whose_passes_cannot_be_recorded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_timing, "MAX_LAYERS", 1)
    timer = FakeTimer((1.0, 1.0, 1.0), (0.1, math.inf, 0.1))

    assert round_seconds(["none", "int8"], TIMED, timer).keys() == {"none"}


@pytest.mark.parametrize("widths", [WIDTHS, (1536, 8960), (576, 1536), (2048, 5632)])
def test_the_timed_layers_do_not_fit_a_devices_cache(widths: tuple[int, int]) -> None:
    layer = TimedLayer(*widths, "bfloat16", "cuda:0")
    num_layers = num_timed_layers(layer)

    assert num_layers * 3 * layer.hidden * layer.timed_intermediate // 2 >= 90 * 2**20
    assert 8 <= num_layers <= 96


def test_cuda_devices_are_timed_by_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []

    def timer(device: torch.device) -> FakeTimer:
        used.append(device)
        return FakeTimer()

    monkeypatch.setattr(format_timing, "timer_for", timer)

    assert measure_formats([], replace(LAYER, device="cuda:1")).seconds == {}
    assert used == [torch.device("cuda:1")]


def test_times_below_a_tenth_of_a_millisecond_have_four_digits() -> None:
    chosen, remark = decide({"none": 0.0000123, "nf4": 0.000006})

    assert chosen == "nf4"
    assert "nf4 0.0060, none 0.0123" in remark
