"""Measures, and reports results and missed limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.bench.advice import best_speedup
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchReport
from specgen.bench.warnings import warnings_of
from specgen.cli.bench.options import LimitOptions, TableOptions
from specgen.cli.bench.output import BenchOutput
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages
from specgen.core.errors import DifferenceError, LimitError, SpecgenError
from specgen.render.progress import BenchProgressBar

if TYPE_CHECKING:
    from specgen.bench.runner import Benchmark

_NO_TABLES = TableOptions(by_category=False, chart=False)


def measure(benchmark: Benchmark, output: BenchOutput, messages: Messages, signals: StopSignals) -> BenchReport:
    """Runs a benchmark. Ctrl-C ends it after the round in progress.

    Raises:
        SpecgenError: The target failed; what was finished is written.
    """
    for notice in benchmark.report().notices:
        messages.warning(notice)
    signals.listener = benchmark.interrupt
    try:
        with BenchProgressBar(messages.console, quiet=messages.quiet) as progress:
            for step in benchmark:
                progress.step(step.stage, step.num_done, step.num_steps)
                output.step(step, benchmark.report())
    except SpecgenError as error:
        if benchmark.report().runs:
            write_results(benchmark.report(), output, messages, error, _NO_TABLES)
        raise
    except BaseException:
        # A second Ctrl-C, a closed pipe, a bug of ours: the finished runs are kept on disk.
        output.keep(benchmark.report())
        raise
    finally:
        signals.listener = None
    return benchmark.report()


def write_results(
    report: BenchReport, output: BenchOutput, messages: Messages, error: SpecgenError | None, tables: TableOptions
) -> None:
    """Writes the results, and on stderr every reason to doubt one.

    Args:
        report: The results.
        output: Receives the results.
        messages: Receives the warnings.
        error: The error the program will end with; it is part of the JSON document.
        tables: What the table shows.
    """
    if not report.runs:
        messages.warning("no run was finished")
        output.finish_empty(report, error)
        return
    output.finish(report, error, by_category=tables.by_category, chart=tables.chart)
    for warning in warnings_of(report):
        messages.warning(warning.message)


def missed_limit(report: BenchReport, limits: LimitOptions) -> SpecgenError | None:
    """Returns the error of the first limit that the results miss; None if they keep all."""
    return (_difference_error(report) if limits.check else None) or _limit_error(report, limits)


def _difference_error(report: BenchReport) -> DifferenceError | None:
    """Returns the error of `--check`: a text is not the target's own, or a configuration failed before its text."""
    different = [difference for difference in report.differences if not difference.is_near_tie]
    if different:
        first = different[0]
        num_prompts = sum(difference.setting == first.setting for difference in different)
        return DifferenceError(
            f"--check: {report.settings[first.setting].name} differs from the target's own text in {num_prompts} of "
            f"{len(report.prompts)} prompts, first in {report.prompts[first.prompt].id} at token {first.position}",
            "this is a bug of specgen or of a kernel: please report it with --format json",
        )
    if report.failures:
        failure = report.failures[0]
        return DifferenceError(f"--check: {report.settings[failure.setting].name} failed: {failure.message}")
    return None


def _limit_error(report: BenchReport, limits: LimitOptions) -> LimitError | None:
    """Returns the error of `--fail-under-speedup` and `--fail-under-tar`."""
    least_speedup, least_tar = limits.fail_under_speedup, limits.fail_under_tar
    if least_speedup is None and least_tar is None:
        return None
    best = best_speedup(figures_by_setting(report))
    if best is None or best.speedup is None:
        return LimitError("no configuration was measured completely, so the limits can't be checked")
    name = best.setting.name
    if least_speedup is not None and best.speedup < least_speedup:
        return LimitError(
            f"--fail-under-speedup {least_speedup:g}: the fastest configuration, {name}, has {best.speedup:.3f}x"
        )
    tar = best.counts.acceptance_rate
    if least_tar is not None and (tar is None or tar < least_tar):
        shown = "drafted nothing" if tar is None else f"has a TAR of {tar:.3f}"
        return LimitError(f"--fail-under-tar {least_tar:g}: the fastest configuration, {name}, {shown}")
    return None
