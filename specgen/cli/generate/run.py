"""Runs `specgen generate`: one prompt, one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.cli.answer_output import AnswerOutput
from specgen.cli.failures import internal_error
from specgen.cli.generate.inputs import Inputs, read_inputs
from specgen.cli.generate.options import GenerateOptions, OutputOptions
from specgen.cli.interruption import finish_failed, finish_stopped, save_partial_answer, try_save
from specgen.cli.options.groups import Format
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.start import loading
from specgen.cli.stdout import discard_stdout
from specgen.cli.streams import Messages
from specgen.cli.terminal_mode import TerminalMode
from specgen.cli.view_options import ViewOptions
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.progress import ProgressListener
from specgen.loading.libraries import gc_paused

if TYPE_CHECKING:
    from specgen.runtime.generation import Generation


def run(options: GenerateOptions) -> int:
    """Answers a prompt and returns the exit code."""
    output = options.output
    format_ = _format(output)
    messages = Messages(output.color, options.verbosity.quiet)
    answer = AnswerOutput(format_, ViewOptions(output.view, output.color, output.sanitize), output.file)
    with StopSignals() as signals, TerminalMode(hides_keys=False) as terminal_mode:
        answering = _Answering(options, answer, messages, signals, terminal_mode)
        try:
            answering.run()
        except BrokenPipeError:
            discard_stdout()
            # The reader closed the pipe; still write the output file.
            code = save_partial_answer(answer, messages)
            return signals.exit_code or code
        except Stopped as stopped:
            finish_stopped(stopped, answer, messages, answering.generation)
            return stopped.exit_code
        except SpecgenError as error:
            finish_failed(error, answer, messages, answering.generation, output.stats)
            messages.error(error)
            return error.exit_code
        except Exception as error:
            failure = internal_error(error)
            finish_failed(failure, answer, messages, answering.generation, output.stats)
            failure.is_reported = True
            raise failure from error
        return signals.exit_code


def _format(options: OutputOptions) -> Format:
    if options.json and options.format not in ("auto", "json"):
        raise SettingsError(f"--json and --format {options.format} exclude each other", "give one of them")
    return "json" if options.json else options.format


class _Answering:
    """An answer from reading the prompt to its figures.

    `generation` is None until the models are loaded.
    """

    def __init__(
        self,
        options: GenerateOptions,
        answer: AnswerOutput,
        messages: Messages,
        signals: StopSignals,
        terminal_mode: TerminalMode,
    ) -> None:
        self.generation: Generation | None = None
        self._options = options
        self._answer = answer
        self._messages = messages
        self._signals = signals
        self._terminal_mode = terminal_mode

    def run(self) -> None:
        """Writes the answer, its file and its figures.

        Raises:
            SpecgenError: It can't be generated or written.
            BrokenPipeError: The reader of stdout is gone.
            Stopped: A signal ended the run.
        """
        options, answer, messages = self._options, self._answer, self._messages
        inputs = read_inputs(options)
        is_random = options.sampling.same_text is False and inputs.draft_length[1] == "auto"
        if options.sampling.seed is not None and is_random:
            messages.warning("with --no-same-text and -k auto, --seed does not repeat the text: add -k N")
        with loading(messages, options.verbosity) as progress, gc_paused():
            self.generation = generation = _open_generation(inputs, progress)
        if options.output.view != "off" and answer.view is not None:
            messages.banner(generation.info, answer.view_name)
        self._show(generation)
        # The file comes first, and its error last: the document and the summary are complete without it.
        failed = try_save(answer)
        shows_figures = options.output.stats and not options.verbosity.quiet
        if (shows_figures or _format(options.output) in ("json", "ndjson")) and not self._signals.exit_code:
            self._measure_baseline(generation)
        if failed:
            raise failed
        report = generation.report()
        answer.finish(report)
        if options.output.stats:
            messages.summary(report)
        _save_costs(generation)

    def _show(self, generation: Generation) -> None:
        answer, mode = self._answer, self._terminal_mode
        generation.clock = mode.without_suspension(generation.clock)
        for notice in generation.models.notices:
            self._messages.warning(notice)
        answer.start(generation.info)
        try:
            for event in generation:
                if mode.was_suspended:
                    mode.was_suspended = False
                    answer.restart_view()
                answer.show(event)
                # After the first event a signal waits for the end of a round. A long prompt is stopped at once.
                self._signals.listener = generation.interrupt
        finally:
            self._signals.listener = None
            answer.close()
        for notice in generation.notices:
            self._messages.warning(notice)

    def _measure_baseline(self, generation: Generation) -> None:
        """Times the target alone. The answer is complete, so an error costs only the comparison."""
        self._signals.listener = generation.interrupt
        try:
            generation.measure_baseline(self._options.drafting.baseline)
        except Exception as error:  # noqa: BLE001 - a bug of ours included
            failure = error if isinstance(error, SpecgenError) else internal_error(error)
            self._messages.warning(f"the target alone was not timed: {failure.message}")
        finally:
            self._signals.listener = None


def _open_generation(inputs: Inputs, progress: ProgressListener) -> Generation:
    from specgen.cli.generate.generation import open_generation

    return open_generation(inputs, progress)


def _save_costs(generation: Generation) -> None:
    from specgen.cli.generate.generation import save_costs

    save_costs(generation)
