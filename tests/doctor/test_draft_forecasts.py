"""Estimates of costs and intervals of `specgen drafts`, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.cost_model import PassCosts
from specgen.core.metrics import Counts
from specgen.core.settings import ModelSettings
from specgen.doctor.draft_measurement import _with_interval
from specgen.doctor.pass_estimate import MachineSpeed, measure_machine
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.resolved_model import GgufFile
from specgen.runtime.confidence import ratio_interval
from specgen.runtime.pair import PairSettings, resolve_pair
from tests.loading.builders import make_gguf
from tests.toys import save_toy


def test_a_pass_reads_all_weights_and_calls_each_layer(tmp_path: Path) -> None:
    pair = resolve_pair(PairSettings(ModelSettings(str(save_toy(tmp_path / "toy"))), "none"))
    assert pair.target.config.decoder is not None
    num_layers = len(pair.target.config.decoder.layers)

    seconds = MachineSpeed(bytes_per_second=1e9, layer_seconds=0.5).pass_seconds(pair.target, 3_000_000_000)

    assert seconds == pytest.approx(3 + 0.5 * num_layers)


@pytest.mark.parametrize(("kind", "seconds"), [("Q4_K", 1.0 + 0.016), ("BF16", 1.0)])
def test_llama_cpp_unpacks_each_quantized_weight(tmp_path: Path, kind: str, seconds: float) -> None:
    """16 ps for each of two billion weights, by two threads."""
    path = make_gguf(tmp_path / "tiny.gguf")
    header = replace(scan_gguf(path), quantization=kind, num_parameters=2_000_000_000)
    target = resolve_pair(PairSettings(ModelSettings(str(save_toy(tmp_path / "toy"))), "none")).target
    model = replace(target, files=replace(target.files, gguf=GgufFile(path, header)))
    speed = MachineSpeed(bytes_per_second=1e9, layer_seconds=0.5, num_threads=2)

    assert speed.pass_seconds(model, 1_000_000_000) == pytest.approx(seconds)


def test_the_machine_is_timed() -> None:
    speed = measure_machine()

    assert speed.bytes_per_second > 0
    assert 0 < speed.layer_seconds < 1


COSTS = PassCosts({1: 1.0, 2: 1.0}, 0.25)


def one_prompt(num_accepted: int) -> Counts:
    """Twenty rounds with one draft token each: speedup (1 + accepted / 20) / 1.25."""
    counts = Counts(num_rounds=20)
    for index in range(20):
        counts.observe_positions(1, int(index < num_accepted))
    return counts


def test_prompts_that_agree_give_a_narrow_interval() -> None:
    found = _with_interval(1.2, 1, [one_prompt(10)] * 4, COSTS)

    assert found.low == pytest.approx(1.2)
    assert found.high == pytest.approx(1.2)


def test_the_interval_is_that_of_prompts_measured_apart() -> None:
    """If all prompts have equally many rounds, both ways give the same interval, apart from the logarithm."""
    accepted = [8, 10, 12, 11, 9]
    each = ratio_interval([(1 + number / 20) / 1.25 for number in accepted])
    assert each is not None

    found = _with_interval(1.2, 1, [one_prompt(number) for number in accepted], COSTS)

    assert found.value == 1.2
    assert found.low == pytest.approx(each.low, rel=0.01)
    assert found.high == pytest.approx(each.high, rel=0.01)
