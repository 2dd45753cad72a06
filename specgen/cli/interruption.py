"""Finishes an answer that a signal or an error cut short: keeps its text, and still writes its file and documents."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import typer

from specgen.cli.failures import Interrupted
from specgen.cli.stdout import discard_stdout
from specgen.cli.streams import Messages, write_error_document
from specgen.core.errors import SpecgenError

if TYPE_CHECKING:
    from specgen.cli.answer_output import AnswerOutput
    from specgen.cli.signals import Stopped
    from specgen.core.results import RunReport
    from specgen.runtime.generation import Generation


def exit_stopped(stopped: Stopped, *, as_json: bool) -> NoReturn:
    """Exits a command that a signal stopped before it wrote anything.

    Raises:
        Exit: Always, with the exit code of the signal.
    """
    if as_json:
        write_error_document(Interrupted(stopped.exit_code))
    raise typer.Exit(stopped.exit_code) from None


def try_save(answer: AnswerOutput) -> SpecgenError | None:
    """Writes the file of an answer; returns the error if that failed, to be reported later."""
    try:
        answer.save()
    except SpecgenError as error:
        return error
    return None


def save_partial_answer(answer: AnswerOutput, messages: Messages) -> int:
    """Writes the file of an answer that ended early, if it has any text, and reports an error.

    Returns:
        The exit code: 0, or that of the error.
    """
    error = try_save(answer) if answer.has_text else None
    if error is None:
        return 0
    messages.error(error)
    return error.exit_code


def finish_stopped(stopped: Stopped, answer: AnswerOutput, messages: Messages, generation: Generation | None) -> None:
    """Finishes an answer that a signal stopped."""
    save_partial_answer(answer, messages)
    with suppress(BrokenPipeError, SpecgenError):
        answer.close()
        if generation is None:
            answer.fail(Interrupted(stopped.exit_code), None)
        else:
            answer.finish(generation.report())


def finish_failed(
    error: SpecgenError, answer: AnswerOutput, messages: Messages, generation: Generation | None, stats: bool
) -> None:
    """Finishes an answer that an error stopped; the text before the error stays."""
    report = _failed_report(generation) if generation is not None and generation.counts.num_rounds else None
    try:
        answer.close()
        answer.fail(error, report)
        if report is not None:
            answer.save()
    except (BrokenPipeError, SpecgenError):
        discard_stdout()
    if report is not None and stats:
        messages.summary(report)


def _failed_report(generation: Generation) -> RunReport:
    report = generation.report()
    if report.finish_reason == "interrupted" and not generation.is_interrupted:
        return replace(report, finish_reason="error")
    return report
