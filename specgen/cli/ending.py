"""How an answer ends that does not end by itself: what was written stays, and is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.errors import SpecgenError

if TYPE_CHECKING:
    from specgen.cli.output import Answer, Messages
    from specgen.generation import Generation


def save_what_there_is(answer: Answer, messages: Messages) -> None:
    """Write the file of an answer that ended early, if there is anything to write."""
    try:
        if answer.has_text:
            answer.save()
    except SpecgenError as error:
        messages.error(error)


def end_early(
    error: SpecgenError, answer: Answer, messages: Messages, generation: Generation | None, stats: bool
) -> None:
    """Bring an answer to its end that an error stopped; what was produced before stands."""
    from specgen.cli.output import silence_stdout

    report = None if generation is None or not generation.counts.num_rounds else generation.report()
    try:
        answer.close()
        answer.fail(error, report)
        if report is not None:
            answer.save()
    except (BrokenPipeError, SpecgenError):
        silence_stdout()
    if report is not None and stats:
        messages.summary(report)
