"""Rehearses the run on a card: every part on a CPU, and what happens to a part that fails or takes too long."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.gpu import on_card, prepare
from tests.gpu.isolation import Part
from tests.gpu.report import Context, fields_of, read_figures
from tests.structure import PACKAGE

ROOT = PACKAGE.parent


class Run:
    """A rehearsal: its output and its figures."""

    def __init__(self, folder: Path) -> None:
        command = [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "tests.gpu.on_card",
            "--device",
            "cpu",
            "--tiny",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
        )
        lines = done.stderr.splitlines()
        self.code, self.output = done.returncode, done.stdout
        self.errors = "\n".join(line for line in lines if not line.startswith("import time:"))
        self.modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        self.figures = read_figures([folder / "on_card-0-9.jsonl"])
        self.document = json.loads((folder / "on_card-0-9.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("card"))


def test_every_part_runs_and_reports(run: Run) -> None:
    wrong = [figure for figure in run.figures if "error" in figure or figure["name"] in ("overdue", "crashed")]

    assert (run.code, wrong) == (0, []), run.errors[-2000:]
    assert {figure["part"] for figure in run.figures} == set(range(10))
    assert run.document["failed_parts"] == []
    assert imported_but_neither_packed_nor_expected(run.modules) == set()


def test_each_figure_is_a_line_and_json(run: Run) -> None:
    # Part 1 runs pytest, whose last line may begin with a number, too.
    names = {str(figure["name"]) for figure in run.figures}
    lines = [
        line
        for line in run.output.splitlines()
        if line[:1].isdigit() and line.split()[1:2] and line.split()[1] in names
    ]

    assert len(lines) == len(run.figures) == len(run.document["figures"])
    assert [line.split()[:2] for line in lines] == [[str(one["part"]), one["name"]] for one in run.figures]
    assert "| figure | measured | good | excellent | verdict |" in run.output


def test_what_packed_libraries_require_is_packed_or_expected() -> None:
    available = with_requirements(prepare.EXPECTED) | set(packed_or_expected())

    assert with_requirements([*prepare.PURE, *prepare.FOR_TESTS]) <= available


def imported_but_neither_packed_nor_expected(modules: set[str]) -> set[str]:
    """Libraries that specgen or its tests import and that the card's machine may lack."""
    own = [name for name in modules if name.partition(".")[0] in ("specgen", "tests")]
    used = {name for module in own for name in imports_of(module)} & {name.partition(".")[0] for name in modules}
    assert {"torch", "transformers"} <= used, "the list of imports is not complete"
    packages = metadata.packages_distributions()
    is_known = {
        name: not {canonicalize_name(one) for one in packages.get(name, [])}.isdisjoint(packed_or_expected())
        for name in used
    }
    # Only int8 on a CPU uses llvmlite, where it is installed.
    return {name for name in used if not is_known[name]} - {"llvmlite", "specgen", "tests"} - sys.stdlib_module_names


def packed_or_expected() -> list[str]:
    return [*prepare.PURE, *prepare.FOR_TESTS, *prepare.EXPECTED, "bitsandbytes"]


def imports_of(module: str) -> set[str]:
    """Top-level names of what a module imports anywhere."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def with_requirements(packages: Sequence[str]) -> set[str]:
    """The packages, and what they require on this machine."""
    found, waiting = set(), list(packages)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                needed = map(Requirement, metadata.requires(name) or [])
                waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


# parts that go wrong


def good(context: Context) -> None:
    context.say("answer", value=42)


def failing(context: Context) -> None:
    raise ValueError("planted\nin two lines")


def killed(context: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def endless(context: Context) -> None:
    context.say("begun")
    subprocess.run(["sleep", "60"])


def fails_to_end(context: Context) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def on_parts(tmp_path: Path, *runs: Callable[[Context], None], options: Any = ()) -> Any:
    limits = {endless: 3.0, fails_to_end: 1.0}
    parts = [Part(number, run.__name__, limits.get(run, 60.0), run) for number, run in enumerate(runs)]
    code = on_card.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), *options], parts)
    return code, read_figures([tmp_path / "on_card-0-9.jsonl"])


pytest_forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest_forks
@pytest.mark.process
def test_a_part_that_fails_or_is_overdue_stops_no_other(tmp_path: Path) -> None:
    code, figures = on_parts(tmp_path, failing, killed, endless, fails_to_end, good)

    assert code == 1
    assert fields_of(figures, "error") == {
        "part": 0,
        "name": "error",
        "what": "failing",
        "error": "ValueError: planted",
    }
    assert fields_of(figures, "crashed", part=1, signal=9)
    assert fields_of(figures, "begun", part=2)
    assert [figure["part"] for figure in figures if figure["name"] == "overdue"] == [2, 3]
    assert fields_of(figures, "answer", part=4) == {"part": 4, "name": "answer", "value": 42}
    document = json.loads((tmp_path / "on_card-0-9.json").read_text())
    assert document["failed_parts"] == [0, 1, 2, 3]


@pytest_forks
@pytest.mark.process
def test_the_whole_run_has_a_deadline(tmp_path: Path) -> None:
    started = time.monotonic()

    code, figures = on_parts(tmp_path, endless, good, options=["--seconds", "1"])

    assert code == 1
    assert time.monotonic() - started < 20
    (overdue,) = [figure for figure in figures if figure["name"] == "overdue"]
    assert overdue["limit_s"] < 1.1
    assert fields_of(figures, "left_out", part=1)


def test_parts_are_chosen_by_numbers_and_ranges() -> None:
    assert on_card._numbers("0-4") == {0, 1, 2, 3, 4}
    assert on_card._numbers("3,7-8") == {3, 7, 8}
    assert {part.number for part in on_card.PARTS} == set(range(10))


def test_the_deadlines_fit_the_two_commands() -> None:
    seconds = {part.number: part.seconds for part in on_card.PARTS}

    assert sum(seconds[number] for number in range(5)) <= 300
    # The last part may take what the others leave, a minute at least.
    assert sum(seconds[number] for number in range(5, 9)) + 60 <= 240


def test_a_file_that_was_cut_off_is_read(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    path.write_text('{"part": 0, "name": "card", "card": "x"}\n{"part": 0, "na')

    assert read_figures([path]) == [{"part": 0, "name": "card", "card": "x"}]
