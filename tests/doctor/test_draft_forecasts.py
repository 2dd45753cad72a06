"""Estimates of costs and intervals of `specgen drafts`, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.cost_model import PassCosts
from specgen.core.metrics import Counts
from specgen.core.settings import ModelSettings, PairSettings
from specgen.doctor import pass_estimate
from specgen.doctor.draft_forecast import DraftForecast, Prediction
from specgen.doctor.draft_measurement import _with_interval
from specgen.doctor.pass_estimate import MachineSpeed, measure_machine
from specgen.doctor.results import MemoryPlan, ModelPlan
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.resolved_model import GgufFile
from specgen.runtime.intervals import ratio_interval
from specgen.runtime.pair import resolve_pair
from tests.loading.builders import make_gguf
from tests.toys import save_toy

Patch = pytest.MonkeyPatch


def planned(num_weight_bytes: int, quant: str = "none", dtype: str = "float32") -> ModelPlan:
    memory = MemoryPlan(num_weight_bytes, 0, 0, 0)
    return ModelPlan("target", "toy", "llama", 1, "cpu", dtype, quant, (), None, memory)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize(
    ("is_tied", "quant", "dtype", "is_embedding_read"),
    [(True, "none", "float32", True), (True, "nf4", "float32", False), (False, "none", "bfloat16", False)],
)
def test_a_pass_reads_what_it_multiplies_and_calls_each_layer(
    is_tied: bool,
    quant: str,
    dtype: str,
    is_embedding_read: bool,
    has_kernels: bool,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """Layers of our own kernels are one call of native code; a layer of torch's is 250 calls."""
    monkeypatch.setattr(pass_estimate, "nf4_kernels", lambda: object() if has_kernels else None)
    monkeypatch.setattr(pass_estimate, "has_float_matmul", lambda _: has_kernels)
    target = resolve_pair(PairSettings(ModelSettings(str(save_toy(tmp_path / "toy"))), "none")).target
    assert target.config.decoder is not None
    spec = replace(target.config.decoder, is_tied=is_tied, vocab_size=1_000_000, hidden_size=500)
    model = replace(target, config=replace(target.config, decoder=spec, dtype="bfloat16"))
    is_native = has_kernels and dtype + quant != "float32none"

    seconds = MachineSpeed(bytes_per_second=1e9, call_seconds=0.002).pass_seconds(
        model, planned(3_000_000_000, quant, dtype)
    )

    num_calls = (45 if is_native else 250) * len(spec.layers)
    assert seconds == pytest.approx((3 if is_embedding_read else 2) + 0.002 * num_calls)


def test_the_command_measures_with_the_formats_of_the_ranking() -> None:
    target, like = (
        ModelSettings("big model", quant="nf4", dtype="float16"),
        ModelSettings("", quant="int8", device="cpu"),
    )
    found = DraftForecast(
        *("small", "given", "", "text", 1, True, 0.2, "estimated", 0.7, "estimated", 3), Prediction(1.3, 1.0, 1.5)
    )

    assert found.bench_command(target, like) == (
        "specgen bench -t 'big model' -Q nf4 --draft-quant int8 --dtype float16 --draft-device cpu -d small "
        "--draft-vocab text -k 3,auto"
    )
    assert found.bench_command(ModelSettings(""), ModelSettings("")) == (
        "specgen bench -d small --draft-vocab text -k 3,auto"
    )


@pytest.mark.parametrize(("kind", "seconds"), [("Q4_K", 1.0 + 0.016 + 0.003), ("BF16", 1.0 + 0.003)])
def test_llama_cpp_unpacks_each_quantized_weight_and_waits_in_each_layer(
    tmp_path: Path, kind: str, seconds: float
) -> None:
    """16 ps for each of two billion weights, by two threads, and 0.15 ms for each of 20 layers."""
    path = make_gguf(tmp_path / "tiny.gguf")
    header = replace(scan_gguf(path), quantization=kind, num_parameters=2_000_000_000, num_layers=20)
    target = resolve_pair(PairSettings(ModelSettings(str(save_toy(tmp_path / "toy"))), "none")).target
    model = replace(target, files=replace(target.files, gguf=GgufFile(path, header)))
    speed = MachineSpeed(bytes_per_second=1e9, call_seconds=0.002, num_threads=2)

    assert speed.pass_seconds(model, planned(1_000_000_000)) == pytest.approx(seconds)


def test_the_machine_is_timed() -> None:
    speed = measure_machine()

    assert speed.bytes_per_second > 0
    assert 0 < speed.call_seconds < 1


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
