from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specgen.bench.advice import recommend
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchReport, Difference
from specgen.bench.warnings import warnings_of
from specgen.core.metrics import sum_counts
from specgen.core.results import LogitGap
from specgen.render.bench.columns import shorten
from specgen.render.bench.documents import bench_document, csv_text, markdown_text
from specgen.render.bench.plot import plot_bytes
from specgen.render.bench.table import TableOptions, format_bench
from specgen.render.jsonl import dumps
from tests.bench.reports import LABEL, counts, report
from tests.render.runs import warmed_up
from tests.snapshots import check_snapshot

NEAR = Difference(setting=1, prompt=0, position=41, gap=LogitGap(0.03, 0.1))


SNAPSHOTS = Path(__file__).parent / "snapshots"


def table(options: TableOptions, made: BenchReport | None = None) -> str:
    made = made or report(differences=[NEAR])
    figures = figures_by_setting(made)
    return format_bench(made, figures, recommend(figures), options).plain


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_reads_as_stored(width: int) -> None:
    check_snapshot(SNAPSHOTS / f"bench-{width}.txt", table(TableOptions(width, by_category=True, has_chart=True)))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_lost(width: int) -> None:
    text = table(TableOptions(width, by_category=True, has_chart=True))

    assert max(len(line) for line in text.splitlines()) <= width
    for word in ("2.00x ±0.00 best", "75 %", "4.00", "near-tie@41", "10 %", "1.0 GiB", "code", "story"):
        assert word in text
    assert "-d Qwen/0.5B --draft-quant nf4 -k 4" in " ".join(text.split())


def test_an_ascii_terminal_gets_ascii() -> None:
    assert table(TableOptions(80, by_category=True, has_chart=True, ascii_only=True)).isascii()


def test_an_interval_wider_than_the_speedup_shows_no_digits() -> None:
    assert "0.91x ±?" in table(TableOptions(120), report((0.02, 0.2), (0.08, 0.08)))


def test_the_document_has_every_raw_run() -> None:
    made = report(differences=[NEAR])

    document = json.loads(dumps(bench_document(made)))

    alone, model, lookup = document["results"]
    assert alone["draft"] is None
    assert alone["backend"] is alone["engine"] is None
    assert (model["draft"], model["k"], model["summary"]["text"]) == (LABEL, "4", "near-tie")
    assert lookup["k"] == "auto"
    assert [len(result["runs"]) for result in document["results"]] == [6, 6, 6]
    run = model["runs"][0]
    assert (run["tokens"], run["drafted"], run["accepted"]) == (40, 40, 30)
    assert run["decode_s"] == pytest.approx(2.0)
    assert len(run["token_ids"]) == 40
    assert document["environment"] == {"processor": "test"}
    assert document["recommendation"]["options"] == "-d Qwen/0.5B --draft-quant nf4 -k 4"
    assert model["differences"][0]["logit_gap"] == 0.03


def test_the_document_predicts_each_category_from_its_own_rounds() -> None:
    made = report()
    runs = [
        replace(run, counts=counts(0.05, 4, 1)) if (run.setting, run.prompt) == (1, 1) else run for run in made.runs
    ]

    document = bench_document(replace(made, runs=tuple(runs)))

    predicted = {category: items[1]["predicted_speedup"] for category, items in document["categories"].items()}
    # A round takes 0.14 s for five tokens and 0.06 s for four drafted ones; a token of the target alone takes 0.1 s.
    assert predicted == {"code": pytest.approx(4 * 0.1 / 0.2), "story": pytest.approx(2 * 0.1 / 0.2)}
    assert document["results"][1]["summary"]["predicted_speedup"] == pytest.approx(3 * 0.1 / 0.2)


def test_csv_has_a_row_per_run() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report()))))

    assert len(rows) == 18
    assert {row["k"] for row in rows} == {"0", "4", "auto"}
    assert float(rows[1]["decode_s"]) == pytest.approx(2.0)


def test_a_run_shows_its_warm_up_which_is_not_in_the_speed() -> None:
    made = report()
    warm = replace(made, runs=tuple(replace(run, counts=warmed_up(sum_counts([run.counts]))) for run in made.runs))

    rows = list(csv.DictReader(io.StringIO(csv_text(warm))))
    plain, shown = (bench_document(one) for one in (made, warm))
    speeds, warm_speeds = (one["results"][1]["summary"] for one in (plain, shown))

    assert (float(rows[1]["warmup_s"]), rows[1]["warmup_tokens"]) == (pytest.approx(0.8), "2")
    assert (warm_speeds["tokens_per_s"], warm_speeds["speedup"]) == (speeds["tokens_per_s"], speeds["speedup"])
    assert shown["recommendation"] == plain["recommendation"]


def test_markdown_has_the_method_one_table_the_recommendation_and_all_warnings() -> None:
    made = report()
    figures = figures_by_setting(made)

    text = markdown_text(made, figures, recommend(figures))
    doubtful = markdown_text(replace(made, is_complete=False), figures, recommend(figures))

    method, table, advice = text.rstrip().split("\n\n")
    assert all(line.startswith("- ") for line in method.splitlines())
    words = ("Qwen2.5-Coder-1.5B", "lookup", "128 tokens", "2 prompts", "3 repeats")
    assert [word for word in words if word not in method] == []
    assert [line.count("|") for line in table.splitlines()] == [13] * 5
    assert "`-d Qwen/0.5B --draft-quant nf4 -k 4`" in advice
    (warning,) = warnings_of(replace(made, is_complete=False))
    assert doubtful.startswith(text)
    assert doubtful.endswith(f"- {warning.message}\n")


def test_a_name_is_cut_before_the_end_that_distinguishes_drafts() -> None:
    assert shorten("smollm2-135m-instruct+lookup", 16, "…") == "smollm2-…+lookup"
    assert shorten("Qwen/Qwen2.5-0.5B-Instruct nf4", 16, "…") == "Qwen/Qwen2.… nf4"
    assert shorten("short+lookup", 16, "…") == "short+lookup"


@pytest.mark.thorough
def test_trees_and_chains_of_one_draft_have_names_of_their_own_in_the_plot() -> None:
    made = report()
    settings = [*made.settings[:2], replace(made.settings[1], num_tree_nodes=4)]
    runs = [replace(run, setting=min(run.setting, 2)) for run in made.runs]
    made = replace(made, settings=settings, runs=runs)

    text = " ".join(ElementTree.fromstring(plot_bytes(made, figures_by_setting(made), ".svg")).itertext())

    assert f"{LABEL} --tree 4" in text


@pytest.mark.thorough
def test_the_plot_is_a_picture_with_every_draft_in_it() -> None:
    made = report()

    svg = plot_bytes(made, figures_by_setting(made), ".svg")

    text = " ".join(ElementTree.fromstring(svg).itertext())
    assert LABEL in text
    assert "lookup" in text
    assert plot_bytes(made, figures_by_setting(made), ".png").startswith(b"\x89PNG")
    # The same runs give the same file.
    assert plot_bytes(made, figures_by_setting(made), ".svg") == svg
