"""Runs `specgen bench`: measures drafts and draft lengths on this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from specgen.bench.advice import best_speedup
from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchReport
from specgen.bench.served import ServedBenchmark
from specgen.cli.bench.inputs import Inputs, read_inputs
from specgen.cli.bench.options import BenchOptions, BenchTableOptions, LimitOptions
from specgen.cli.bench.output import BenchOutput
from specgen.cli.bench.served import open_served_benchmark
from specgen.cli.error_report import Interrupted
from specgen.cli.options.server import check_without_server
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.streams import Messages, discard_stdout, loading
from specgen.core.errors import DifferenceError, LimitError, SpecgenError
from specgen.core.progress import ProgressListener
from specgen.loading.libraries import gc_paused
from specgen.render.progress import BenchProgressBar

if TYPE_CHECKING:
    from specgen.bench.runner import Benchmark


def run(options: BenchOptions) -> int:
    """Measures, writes the results and returns the exit code.

    Raises:
        SpecgenError: A model can't be loaded, the target failed, or a limit is missed.
    """
    messages = Messages(options.color, options.verbosity.quiet)
    if not options.servers:
        check_without_server(BenchOptions, options.given)
    inputs = None if options.servers else read_inputs(options)
    output = BenchOutput(options.format, options.exports, options.color, messages)
    error: SpecgenError | None = None
    with StopSignals() as signals:
        try:
            benchmark: Benchmark | ServedBenchmark
            if inputs is None:
                benchmark = open_served_benchmark(options)
            else:
                with loading(messages, options.verbosity) as progress, gc_paused():
                    benchmark = _open_benchmark(inputs, progress)
            report = _measure(benchmark, output, messages, signals)
            error = _missed_limit(report, options.limits)
            output.finish(report, None if signals.exit_code else error, options.table)
        except SpecgenError as failure:
            output.fail(failure)
            raise
        except BrokenPipeError:
            discard_stdout()
            # The reader closed the pipe before the table; a missed limit still decides the exit code.
            if error is None:
                return 0
        except Stopped as stopped:
            with suppress(BrokenPipeError, SpecgenError):
                output.fail(Interrupted(stopped.exit_code))
            return stopped.exit_code
        if signals.exit_code:
            return signals.exit_code
    if error is not None:
        raise error
    return 0


def _open_benchmark(inputs: Inputs, progress: ProgressListener) -> Benchmark:
    from specgen.cli.bench.benchmark import open_benchmark

    return open_benchmark(inputs, progress)


def _measure(
    benchmark: Benchmark | ServedBenchmark, output: BenchOutput, messages: Messages, signals: StopSignals
) -> BenchReport:
    """Runs a benchmark and saves the costs of passes. Ctrl-C ends it after the round in progress.

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
            output.finish(benchmark.report(), error, BenchTableOptions(chart=False))
        raise
    except BaseException:
        # A second Ctrl-C, a closed pipe, a bug of ours: the finished runs are kept on disk.
        output.keep(benchmark.report())
        raise
    finally:
        signals.listener = None
    if not isinstance(benchmark, ServedBenchmark):
        from specgen.cli.bench.benchmark import save_costs

        save_costs(benchmark)
    return benchmark.report()


def _missed_limit(report: BenchReport, limits: LimitOptions) -> SpecgenError | None:
    """Returns the error of the first limit that the results miss; None if they keep all."""
    return (_difference_error(report) if limits.check else None) or _limit_error(report, limits)


def _difference_error(report: BenchReport) -> DifferenceError | None:
    """Returns the error of `--check`: a text is not the target's own, or a configuration failed before its text."""
    different = [difference for difference in report.differences if not difference.is_near_tie]
    if different:
        first = different[0]
        num_prompts = sum(difference.setting == first.setting for difference in different)
        setting = report.settings[first.setting]
        hint = "this is a bug of specgen or of a kernel: please report it with --format json"
        if setting.drafter == "server":
            hint = "check that both servers run the same model in the same format; else it is a fault of the engine"
        return DifferenceError(
            f"--check: {setting.name} differs from the target's own text in {num_prompts} of {len(report.prompts)} "
            f"prompts, first in {report.prompts[first.prompt].id} at {setting.position_unit} {first.position}",
            hint,
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
