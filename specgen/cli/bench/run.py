"""Runs `specgen bench`: measures drafts and draft lengths on this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from specgen.cli.bench.inputs import Inputs, read_inputs
from specgen.cli.bench.measure import measure, missed_limit, write_results
from specgen.cli.bench.options import BenchOptions
from specgen.cli.bench.output import BenchOutput, check_exports
from specgen.cli.failures import Interrupted
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.start import loading
from specgen.cli.stdout import discard_stdout
from specgen.cli.streams import Messages
from specgen.core.errors import SpecgenError
from specgen.core.progress import ProgressListener
from specgen.loading.libraries import gc_paused

if TYPE_CHECKING:
    from specgen.bench.results import BenchReport
    from specgen.bench.runner import Benchmark


def run(options: BenchOptions) -> int:
    """Measures, writes the results and returns the exit code.

    Raises:
        SpecgenError: A model can't be loaded, the target failed, or a limit is missed.
    """
    messages = Messages(options.color, options.verbosity.quiet)
    inputs = read_inputs(options)
    check_exports(options.exports)
    output = BenchOutput(options.format, options.exports, options.color, messages)
    error: SpecgenError | None = None
    with StopSignals() as signals:
        try:
            with loading(messages, options.verbosity) as progress, gc_paused():
                benchmark = _open_benchmark(inputs, progress)
            report = _measure(benchmark, output, messages, signals)
            error = missed_limit(report, options.limits)
            write_results(report, output, messages, None if signals.exit_code else error, options.table)
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


def _measure(benchmark: Benchmark, output: BenchOutput, messages: Messages, signals: StopSignals) -> BenchReport:
    from specgen.cli.bench.benchmark import save_costs

    report = measure(benchmark, output, messages, signals)
    save_costs(benchmark)
    return report
