"""One target on two backends in one benchmark. Toys on a virtual clock replace the backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.bench.advice import command_line_for, recommend
from specgen.bench.configurations import Host
from specgen.bench.figures import figures_by_setting
from specgen.bench.open_models import open_backends
from specgen.bench.results import BenchReport, BenchSettings, Setting
from specgen.bench.runner import Benchmark
from specgen.cli.bench.inputs import on_both_backends
from specgen.core.draft_name import LOOKUP
from specgen.core.settings import BackendSettings, ModelSettings, PairSettings
from specgen.render.bench.columns import name_columns
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import Message
from specgen.text.prompts import PromptEntry
from tests.bench.virtual import VirtualClock, finished, model
from tests.toys import save_toy

CONFIG = BenchSettings(num_tokens=40, num_repeats=2, num_warmups=0)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    """Lookup on either backend; passes of the second one take 5 seconds each, and its text differs."""
    with pytest.MonkeyPatch.context() as patch:
        return measured(tmp_path_factory.mktemp("backends"), patch)


def measured(folder: Path, patch: pytest.MonkeyPatch) -> BenchReport:
    clock = VirtualClock(lambda _, is_first, num_tokens: 1 + (num_tokens - 1) / 10 if is_first else 5.0)
    clock.install(patch)
    first, second = save_toy(folder / "first"), save_toy(folder / "second", fox=" quick")
    pairs = {}
    for backend, folder in (("llama.cpp", first), ("torch", second)):
        baseline = resolve_pair(PairSettings(model(folder), drafter="none"))
        pairs[backend] = (baseline, {"lookup": baseline.with_draft(LOOKUP, ModelSettings(""))})
    configurations = open_backends(pairs, [Setting("lookup", "lookup", "lookup", 2)])
    clock.target = configurations[0].models.target.module
    prompts = [PromptEntry(f"p{i}", "text", (Message("user", "hello"),)) for i in range(2)]
    return finished(Benchmark(configurations, prompts, CONFIG, host=Host(clock=clock, wall_clock=clock)))


def test_rows_are_grouped_by_backend(report: BenchReport) -> None:
    figures = figures_by_setting(report)

    assert [(item.setting.backend, item.setting.drafter) for item in figures] == [
        *(("llama.cpp", "none"), ("llama.cpp", "lookup")),
        *(("torch", "none"), ("torch", "lookup")),
    ]
    backends, drafts, _ = name_columns(figures, None, ascii_only=True)
    assert (backends.head, drafts.values[2]) == ("backend", "(target alone)")
    assert report.other_target is not None
    assert (report.target.name, report.other_target.name) == ("first", "second")
    assert command_line_for(figures[3].setting) == "-d lookup -k 2 --backend torch"
    assert command_line_for(figures[2].setting) == "-d none --backend torch"


def test_every_speedup_is_relative_to_the_first_backend(report: BenchReport) -> None:
    alone, drafted, other_alone, other_drafted = figures_by_setting(report)

    assert alone.speedup is None
    assert other_alone.speedup == pytest.approx(1 / 5)
    seconds = sum(1 + (fed - 1) / 10 for fed, num in enumerate(drafted.counts.fed_histogram) for _ in range(num))
    assert drafted.speedup == pytest.approx(drafted.counts.num_emitted / seconds)
    rounds = other_drafted.counts.num_rounds
    assert other_drafted.speedup == pytest.approx(other_drafted.counts.num_emitted / (5 * rounds))
    # The costs of passes were measured on the first backend, so they predict nothing about the second.
    assert drafted.predicted_speedup is not None
    assert other_alone.predicted_speedup is other_drafted.predicted_speedup is None
    assert report.costs is not None
    assert report.costs.verify_seconds[1] == pytest.approx(1.0)


def test_a_text_is_compared_with_the_baseline_of_its_backend(report: BenchReport) -> None:
    texts = {run.setting: run.token_ids for run in report.runs}

    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert [item.text_verdict for item in figures_by_setting(report)] == [None, "same", None, "same"]
    assert report.differences == ()


def test_the_other_backend_alone_is_recommended_if_it_is_the_fastest(report: BenchReport) -> None:
    alone, _, other_alone, _ = figures_by_setting(report)

    slow, fast = (recommend([alone, replace(other_alone, speedup=speedup, interval=None)]) for speedup in (0.2, 5.0))

    assert slow.figures is None
    assert "torch" in slow.reason
    assert "0.20x" in slow.reason
    assert fast.figures is not None
    assert command_line_for(fast.figures.setting) == "-d none --backend torch"


def test_options_reach_the_backend_that_they_are_for() -> None:
    given = BackendSettings("auto", context_size=512, threads=2)
    target = ModelSettings("model.gguf", dtype="float32", backend=given)

    native, unpacked = on_both_backends(
        target, ModelSettings("", dtype="float32", device="cpu", backend=given)
    ).values()

    assert native[0] == ModelSettings("model.gguf", backend=BackendSettings("llama.cpp", context_size=512, threads=2))
    assert (native[1].dtype, native[1].backend) == ("auto", given)
    assert unpacked[0] == ModelSettings("model.gguf", dtype="float32", backend=BackendSettings("torch"))
    assert (unpacked[1].dtype, unpacked[1].backend) == ("float32", BackendSettings("torch"))
