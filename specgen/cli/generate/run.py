"""Runs `specgen generate`: one prompt, one answer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from specgen.cli.error_report import Interrupted, internal_error
from specgen.cli.generate.options import GenerateOptions
from specgen.cli.generate.output import AnswerOutput
from specgen.cli.generate.served import open_served_answer
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.streams import Messages, discard_stdout, loading
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.errors import SpecgenError
from specgen.core.results import RunReport
from specgen.loading.libraries import gc_paused

if TYPE_CHECKING:
    from specgen.runtime.answer import Answer


def run(options: GenerateOptions) -> int:
    """Answers a prompt and returns the exit code."""
    messages = Messages(options.output.color, options.verbosity.quiet)
    answer = AnswerOutput(options.output)
    with StopSignals() as signals, TerminalMode(hides_keys=False) as terminal_mode:
        answering = _Answering(options, answer, messages, signals, terminal_mode)
        try:
            answering.run()
        except BrokenPipeError:
            discard_stdout()
            # The reader closed the pipe; still write the output file.
            code = answering.save_partial_answer()
            return signals.exit_code or code
        except Stopped as stopped:
            answering.finish_stopped(stopped)
            return stopped.exit_code
        except SpecgenError as error:
            answering.finish_failed(error)
            messages.error(error)
            return error.exit_code
        except Exception as error:
            failure = internal_error(error)
            answering.finish_failed(failure)
            failure.is_reported = True
            raise failure from error
        return signals.exit_code


@dataclass
class _Answering:
    """An answer from reading the prompt to its figures, or to the signal or error that cuts it short."""

    options: GenerateOptions
    answer: AnswerOutput
    messages: Messages
    signals: StopSignals
    terminal_mode: TerminalMode
    generation: Answer | None = None

    def run(self) -> None:
        """Writes the answer, its file and its figures.

        Raises:
            SpecgenError: It can't be generated or written.
            BrokenPipeError: The reader of stdout is gone.
            Stopped: A signal ended the run.
        """
        options, answer, messages = self.options, self.answer, self.messages
        self.generation = generation = self._open()
        if options.output.view != "off" and not answer.writes_report:
            messages.banner(generation.info, answer.view_options.resolved_view)
        self._show(generation)
        # The file comes first, and its error last: the document and the summary are complete without it.
        failed = self._try_save()
        shows_figures = options.output.stats and not options.verbosity.quiet
        if (shows_figures or answer.writes_report) and not self.signals.exit_code:
            self._measure_baseline(generation)
        if failed:
            raise failed
        report = generation.report()
        answer.finish(report)
        if options.output.stats:
            messages.summary(report)
        generation.finish()

    def _open(self) -> Answer:
        """Connects to the server, or loads the models."""
        options, messages = self.options, self.messages
        if options.server.server:
            return open_served_answer(options)
        from specgen.cli.generate.inputs import read_inputs  # 60 ms, which a server does not need

        inputs = read_inputs(options)
        is_random = options.sampling.same_text is False and inputs.draft_length[1] == "auto"
        if options.sampling.seed is not None and is_random:
            messages.warning("with --no-same-text and -k auto, --seed does not repeat the text: add -k N")
        with loading(messages, options.verbosity) as progress, gc_paused():
            from specgen.cli.generate.local import open_generation  # torch, whose threads are limited by now

            return open_generation(inputs, progress)

    def _show(self, generation: Answer) -> None:
        answer, mode = self.answer, self.terminal_mode
        generation.clock = mode.without_suspension(generation.clock)
        for notice in generation.first_notices:
            self.messages.warning(notice)
        answer.start(generation.info)
        try:
            for event in generation:
                if mode.was_suspended:
                    mode.was_suspended = False
                    answer.restart_view()
                answer.show(event)
                # After the first event a signal waits for the end of a round. A long prompt is stopped at once.
                self.signals.listener = generation.interrupt
        finally:
            self.signals.listener = None
            answer.close()
        for notice in generation.notices:
            self.messages.warning(notice)

    def _measure_baseline(self, generation: Answer) -> None:
        """Times the target alone. The answer is complete, so an error costs only the comparison."""
        num_shown = len(generation.notices)
        self.signals.listener = generation.interrupt
        try:
            generation.measure_baseline(self.options.drafting.baseline)
            for notice in generation.notices[num_shown:]:
                self.messages.warning(notice)
        except Exception as error:  # noqa: BLE001 - a bug of ours included
            failure = error if isinstance(error, SpecgenError) else internal_error(error)
            self.messages.warning(f"the target alone was not timed: {failure.message}")
        finally:
            self.signals.listener = None

    def _try_save(self) -> SpecgenError | None:
        """Writes the file of the answer; returns the error, to be reported later."""
        try:
            self.answer.save()
        except SpecgenError as error:
            return error
        return None

    def save_partial_answer(self) -> int:
        """Writes the file of an answer that ended early, if it has any text.

        Returns:
            The exit code: 0, or that of the error, which is reported.
        """
        error = self._try_save() if self.answer.has_text else None
        if error is None:
            return 0
        self.messages.error(error)
        return error.exit_code

    def finish_stopped(self, stopped: Stopped) -> None:
        """Finishes an answer that a signal stopped."""
        self.save_partial_answer()
        with suppress(BrokenPipeError, SpecgenError):
            self.answer.close()
            if self.generation is None:
                self.answer.finish(None, Interrupted(stopped.exit_code))
            else:
                self.answer.finish(self.generation.report())

    def finish_failed(self, error: SpecgenError) -> None:
        """Finishes an answer that an error stopped; the text before the error stays."""
        report = self._failed_report()
        try:
            self.answer.close()
            self.answer.finish(report, error)
            if report is not None:
                self.answer.save()
        except (BrokenPipeError, SpecgenError):
            discard_stdout()
        if report is not None and self.options.output.stats:
            self.messages.summary(report)

    def _failed_report(self) -> RunReport | None:
        """Returns the figures of an answer that an error stopped; None before its first round."""
        generation = self.generation
        if generation is None or not generation.has_begun:
            return None
        report = generation.report()
        if report.finish_reason == "interrupted" and not generation.is_interrupted:
            return replace(report, finish_reason="error")
        return report
