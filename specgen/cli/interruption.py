"""How an answer ends that does not end by itself: what was written stays, and is saved."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import typer

from specgen.core.errors import SpecgenError

if TYPE_CHECKING:
    from specgen.cli.signals import Stopped
    from specgen.cli.streams import Answer, Messages
    from specgen.core.results import RunReport
    from specgen.runtime.generation import Generation


class Interrupted(SpecgenError):
    """A signal ended the program; told only where a script waits for a document.

    Args:
        exit_code: 128 and the signal's number.
    """

    code = "interrupted"

    def __init__(self, exit_code: int) -> None:
        super().__init__("a signal ended the run")
        self.exit_code = exit_code


def leave(stopped: Stopped, *, as_json: bool) -> NoReturn:
    """End a command that a signal ended before it had written anything."""
    if as_json:
        from specgen.cli.streams import write_error

        write_error(Interrupted(stopped.exit_code))
    raise typer.Exit(stopped.exit_code) from None


def saving_error(answer: Answer) -> SpecgenError | None:
    """Write the answer's file; why that failed, for whoever has something to do before it is told."""
    try:
        answer.save()
    except SpecgenError as error:
        return error
    return None


def save_what_there_is(answer: Answer, messages: Messages) -> int:
    """Write the file of an answer that ended early, if there is anything to write.

    Returns:
        The exit code: 0, or that of an error, which has been told.
    """
    error = saving_error(answer) if answer.has_text else None
    if error is None:
        return 0
    messages.error(error)
    return error.exit_code


def end_stopped(stopped: Stopped, answer: Answer, messages: Messages, generation: Generation | None) -> None:
    """Bring an answer to its end that a signal stopped where it was."""
    save_what_there_is(answer, messages)
    with suppress(BrokenPipeError, SpecgenError):
        answer.close()
        if generation is None:
            answer.fail(Interrupted(stopped.exit_code), None)
        else:
            answer.finish(generation.report())


def _ended_by_error(generation: Generation) -> RunReport:
    report = generation.report()
    if report.finish_reason == "interrupted" and not generation.is_interrupted:
        return replace(report, finish_reason="error")
    return report


def end_early(
    error: SpecgenError, answer: Answer, messages: Messages, generation: Generation | None, stats: bool
) -> None:
    """Bring an answer to its end that an error stopped; what was produced before stands."""
    from specgen.cli.streams import silence_stdout

    report = None if generation is None or not generation.counts.num_rounds else _ended_by_error(generation)
    try:
        answer.close()
        answer.fail(error, report)
        if report is not None:
            answer.save()
    except (BrokenPipeError, SpecgenError):
        silence_stdout()
    if report is not None and stats:
        messages.summary(report)
