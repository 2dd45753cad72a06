"""Runs `specgen batch`: answers a file of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from rich.text import Text

from specgen.cli.batch.inputs import LocalInputs, read_requests
from specgen.cli.batch.options import BatchOptions
from specgen.cli.batch.served import ServedInputs
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.streams import Messages, loading, require_stdout, write_document
from specgen.core.batch import Answering, BatchRequest, BatchTotals
from specgen.core.errors import BatchError, SpecgenError
from specgen.loading.libraries import gc_paused
from specgen.render.batch import format_progress, format_totals, result_line, totals_document
from specgen.render.formatting import format_count
from specgen.render.progress import BatchBar
from specgen.runtime.batch.output_file import OutputFile


def run(options: BatchOptions) -> int:
    """Answers the requests that have no line in the output, and returns the exit code.

    Raises:
        SpecgenError: Nothing can be answered, or some requests failed. Finished answers are in the output.
    """
    messages = Messages(options.color, options.verbosity.quiet)
    if options.json:
        require_stdout("the document")
    requests = read_requests(options)
    inputs = ServedInputs(options) if options.served.server else LocalInputs(options, requests)
    with OutputFile(options.output, retries_failed=options.retry_failed) as output, StopSignals() as signals:
        left = [request for request in requests if request.id not in output.done]
        totals = BatchTotals(len(requests), len(requests) - len(left), monotonic)
        num_failed_before = sum(not output.done.get(request.id, True) for request in requests)
        error: SpecgenError | None = None
        try:
            if left:
                with loading(messages, options.verbosity) as progress, gc_paused():
                    answering = inputs.open(progress)
                totals = BatchTotals(len(requests), len(requests) - len(left), monotonic)
                _answer(answering, left, output, totals, (messages, signals))
        except Stopped as stopped:
            signals.signum = stopped.exit_code - 128
        except SpecgenError as failure:
            if not totals.num_answered + totals.num_failed:
                raise
            error = failure
        if error is None and not signals.exit_code:
            error = _failed(totals.num_failed + num_failed_before, options)
    return _finish(options, messages, totals, error, signals.exit_code)


def _answer(
    answering: Answering,
    requests: Sequence[BatchRequest],
    output: OutputFile,
    totals: BatchTotals,
    interface: tuple[Messages, StopSignals],
) -> None:
    """Answers requests and writes each result at once. Ctrl-C ends it and drops unfinished answers."""
    messages, signals = interface
    signals.listener = answering.interrupt
    try:
        with BatchBar(messages.console, quiet=messages.quiet) as bar:
            bar.step(totals.num_done, totals.num_requests, "")
            for result in answering.results(requests):
                output.append(result_line(result))
                totals.observe(result)
                bar.step(totals.num_done, totals.num_requests, format_progress(totals))
    finally:
        signals.listener = None


def _failed(num_failed: int, options: BatchOptions) -> BatchError | None:
    """Returns the error for requests whose line in the output is an error; None if there is none."""
    if not num_failed:
        return None
    return BatchError(
        f"{format_count(num_failed, 'request')} failed; {options.output} says why",
        "add --retry-failed to answer them again",
    )


def _finish(
    options: BatchOptions, messages: Messages, totals: BatchTotals, error: SpecgenError | None, exit_code: int
) -> int:
    """Writes the summary and the document; returns the exit code of a signal, or 0.

    Raises:
        SpecgenError: `error`.
    """
    if options.stats:
        messages.info(format_totals(totals))
    if exit_code and not messages.quiet:
        messages.info(Text("stopped; the same command continues with what is left"))
    if options.json:
        with suppress(BrokenPipeError):
            is_complete = totals.num_done == totals.num_requests
            write_document(totals_document(totals, is_complete=is_complete, error=error))
    if error is not None and not exit_code:
        error.is_reported = options.json
        raise error
    return exit_code
