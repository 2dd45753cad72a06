"""What the figures of servers look like on a terminal of 80 columns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from specgen.bench.advice import recommend
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchReport, BenchSettings, Difference, Prompt, Run, Setting
from specgen.bench.warnings import warnings_of
from specgen.core.baseline import Baseline
from specgen.core.metrics import Counts, Detail
from specgen.core.results import LogitGap, ModelInfo, RunReport, ServedFigures, ServerInfo
from specgen.render.bench.table import TableOptions, format_bench
from specgen.render.summary import format_summary
from tests.bench.reports import counts
from tests.render.runs import info
from tests.render.runs import report as run_report
from tests.snapshots import check_snapshot

SNAPSHOTS = Path(__file__).parent / "snapshots"
TARGET = ModelInfo("acme/big", "", "", "", remark="vLLM 0.32.0 at c:8000")
A, B = (Setting("server", f"http://{name}:8000", f"vLLM {name}:8000") for name in "ab")
ONE = (Setting("none", label="(baseline) c:8000"), A, B)
SETTINGS = (*ONE, *(replace(one, concurrency=8) for one in ONE))


def served_counts(seconds: float, num_drafted: int, num_accepted: int) -> Counts:
    return replace(counts(seconds, num_drafted, num_accepted), is_served=True)


def bench(*differences: Difference) -> BenchReport:
    """Reports two servers and a baseline of 0.1 s per token; at concurrency 8 all are slower, and drafts cost."""
    runs = []
    for repeat in range(2):
        for prompt in range(2):
            for index, seconds in enumerate((0.1, 0.05, 0.08, 0.3, 0.25, 0.4)):
                row = served_counts(seconds, *((0, 0), (4, 3), (2, 1))[index % 3])
                start = 60.0 * repeat + (0.0 if index > 2 else 10.0 * prompt)
                runs.append(Run(index, prompt, repeat, row, (), None, start, 10.0))
    return BenchReport(
        target=TARGET,
        drafts={},
        settings=SETTINGS,
        prompts=(Prompt("p0", "code", 20), Prompt("p1", "story", 20)),
        config=BenchSettings(num_repeats=2, concurrencies=(1, 8)),
        runs=tuple(runs),
        differences=differences,
        compared=frozenset((index, prompt) for index in (1, 2, 4, 5) for prompt in range(2)),
        is_complete=True,
    )


def test_a_benchmark_of_servers_reads_as_stored() -> None:
    made = bench(Difference(2, 0, 17, LogitGap(math.nan, 0.25)), Difference(5, 1, 3, LogitGap(1.5, 0.25)))
    figures = figures_by_setting(made)
    text = format_bench(made, figures, recommend(figures), TableOptions(80, has_chart=True)).plain
    warnings = "\n".join(warning.message for warning in warnings_of(made, figures))

    assert max(map(len, text.splitlines())) <= 80
    check_snapshot(SNAPSHOTS / "bench-served-80.txt", f"{text}\n\n{warnings}")


def test_each_setting_is_compared_with_the_baseline_of_its_concurrency() -> None:
    speedups = [one.speedup for one in figures_by_setting(bench())]

    assert [speedups[0], speedups[3]] == [None, None]
    assert [speedups[index] for index in (1, 2, 4, 5)] == pytest.approx([2.0, 1.25, 1.2, 0.75])


def test_throughput_counts_requests_that_run_at_the_same_time_once() -> None:
    one, together = (figures_by_setting(bench())[index].output_throughput for index in (1, 4))

    assert one == pytest.approx(4 * 40 / 40)  # two prompts of each of two repeats, one after the other, 10 s each
    assert together == pytest.approx(4 * 40 / 20)


def served(served_figures: ServedFigures, detail: Detail = Detail.ALL, **changes: object) -> RunReport:
    made = served_counts(0.05, 4, 3)
    if detail is Detail.NOTHING:
        made = served_counts(0.05, 0, 0)
    if detail in (Detail.NOTHING, Detail.TOTALS):
        made.num_rounds = 0
    made.detail = detail
    server = ServerInfo("vLLM 0.32.0", "a:8000", "c:8000" if "baseline" in changes else "")
    what = replace(info("server", 0), target=TARGET, draft=None, server=server)
    made_report = replace(run_report(made, None), peak_memory_bytes=0)
    return replace(made_report, info=what, served=served_figures, **changes)


SUMMARIES = {
    "response": served(ServedFigures("response", "response", 3.9, "", "vllm serve acme/big --port 8001")),
    "metrics": served(ServedFigures("metrics", "client", 3.9), Detail.ROUNDS),
    "totals": served(ServedFigures("response", "client"), Detail.TOTALS),
    "nothing": served(ServedFigures(None, "client", None, "start vLLM with --flag"), Detail.NOTHING),
    "baseline": served(ServedFigures("response", "response", 3.9), baseline=Baseline("server", 40, 0.1, None, True)),
    "another text": served(ServedFigures("response", "response"), baseline=Baseline("server", 40, 0.1, 7, True)),
    "same server": served(ServedFigures("response", "client"), baseline=Baseline("request", 40, 0.1)),
}


def test_a_served_answer_reads_as_stored() -> None:
    blocks = [f"# {name}\n{format_summary(run, 80).plain}\n" for name, run in SUMMARIES.items()]

    assert max(len(line) for block in blocks for line in block.splitlines()) <= 80
    check_snapshot(SNAPSHOTS / "summary-served.txt", "\n".join(blocks))
