"""`specgen generate`: options in, one answer out. Everything heavy is imported inside, once the input is known good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.errors import internal_error
from specgen.cli.interruption import finish_failed, finish_stopped, save_partial_answer, try_save
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import discard_stdout
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.settings import BackendSettings, ModelSettings

if TYPE_CHECKING:
    from specgen.cli.answer_output import AnswerOutput
    from specgen.cli.streams import Messages
    from specgen.cli.terminal_mode import TerminalMode
    from specgen.core.settings import BaselineMethod
    from specgen.render.progress import LoadProgress
    from specgen.runtime.generation import Generation, Request
    from specgen.runtime.loaded_models import LoadedModels
    from specgen.runtime.pair import Pair, PairSettings

EPILOG = """Examples:

specgen generate "Why is the sky blue?"

specgen generate -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct -k 4 "Write a haiku."

git diff | specgen generate "Write a commit message for this change." > message.txt

specgen generate --json "List three colours." | jq -r .text"""


def generate(
    prompt_argument: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]", help="The prompt. - reads stdin; piped text goes before the prompt.", show_default=False
        ),
    ] = None,
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt, as an option.", rich_help_panel=o.INPUT)
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            help="Text that goes before the prompt; - is stdin. Can be repeated.",
            rich_help_panel=o.INPUT,
            show_default=False,
        ),
    ] = None,
    use_stdin: Annotated[
        bool | None,
        typer.Option(
            "--stdin/--no-stdin",
            help="Read stdin or not. Default: if it is a pipe or a file.",
            rich_help_panel=o.INPUT,
            show_default=False,
        ),
    ] = None,
    system: o.System = None,
    system_file: o.SystemFile = None,
    chat_template: o.ChatTemplate = "auto",
    chat_template_kwargs: o.ChatTemplateKwargs = None,
    target: o.Target = "",
    draft: o.DraftName = o.DEFAULT_DRAFT,
    quant: o.Quant = "auto",
    draft_quant: o.DraftQuant = "auto",
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    draft_device: o.DraftDevice = None,
    revision: o.Revision = None,
    draft_revision: o.DraftRevision = None,
    offline: o.Offline = False,
    backend: e.Backend = "auto",
    gpu_layers: e.GpuLayers = None,
    context_size: e.ContextSize = None,
    threads: e.Threads = None,
    draft_tokens: o.DraftTokens = o.DEFAULT_DRAFT_TOKENS,
    lookup_file: o.LookupFiles = None,
    baseline: o.Baseline = "calibrate",
    strict: o.Strict = False,
    max_new_tokens: o.MaxNewTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    same_text: o.SameText = None,
    stop: o.Stop = None,
    ignore_eos: o.IgnoreEos = False,
    view: o.View = "auto",
    color: o.Color = "auto",
    sanitize: o.Sanitize = "auto",
    form: Annotated[
        o.Format,
        typer.Option(
            "--format", help="text, json (one document) or ndjson (an event per line).", rich_help_panel=o.OUTPUT
        ),
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as --format json.", rich_help_panel=o.OUTPUT)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the plain answer to this file as well.", rich_help_panel=o.OUTPUT),
    ] = None,
    stats: o.Stats = True,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Answer one prompt: the draft guesses, the target checks, and you see which guesses it kept."""
    # Rich and the renderers take 0.1 s to import, and help and completion need none of them.
    from specgen.cli.answer_output import AnswerOutput
    from specgen.cli.prompt_input import read_prompt
    from specgen.cli.request import (
        PromptOptions,
        SamplingOptions,
        build_request,
        check_stops,
        draft_length_from,
        lookup_texts_from,
        pair_settings,
        system_message,
        template_options_from,
    )
    from specgen.cli.streams import Messages
    from specgen.cli.terminal_mode import TerminalMode
    from specgen.cli.view_options import ViewOptions
    from specgen.loading.libraries import gc_paused
    from specgen.render.progress import LoadProgress

    if as_json and form not in ("auto", "json"):
        raise SettingsError(f"--json and --format {form} exclude each other", "give one of them")
    form = "json" if as_json else form
    engine = BackendSettings(backend, gpu_layers, context_size, threads)
    target_settings = ModelSettings(target, quant, dtype, device, revision, offline, engine)
    draft_settings = ModelSettings(draft, draft_quant, dtype, draft_device or device, draft_revision, offline, engine)
    messages = Messages(color, quiet)
    answer = AnswerOutput(form, ViewOptions(view, color, sanitize), output)
    generation: Generation | None = None
    with StopSignals() as signals, TerminalMode(hides_keys=False) as terminal_mode:
        try:
            sampling = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed, same_text)
            # Range errors are told before anything is read or loaded.
            sampling.resolve(None)
            draft_length = draft_length_from(draft_tokens)
            prompt = PromptOptions(
                read_prompt(prompt_argument, prompt_option, files or [], use_stdin, is_chat=chat_template != "none"),
                system_message(system, system_file),
                chat_template,
                template_options_from(chat_template_kwargs),
            )
            check_stops(stop or [])
            lookup_texts = lookup_texts_from(lookup_file, [draft])
            if seed is not None and same_text is False and draft_length[1] == "auto":
                messages.warning("with --no-same-text and -k auto a seed repeats nothing: add -k N")
            loading = LoadProgress(messages.console, quiet=quiet, verbose=verbose > 0)
            with loading as progress, gc_paused():
                progress.stage("starting")
                _prepare(verbose > 1)
                pair = _pair(pair_settings(target_settings, draft_settings, lookup_texts), progress)
                request = build_request(
                    pair, prompt, sampling, max_new_tokens, draft_length, tuple(stop or ()), ignore_eos, strict
                )
                models = _open(pair, progress)
            generation = _new_generation(models, request)
            if view != "off" and answer.view is not None:
                messages.banner(generation.info, answer.view_name)
            _run(generation, answer, messages, signals, terminal_mode)
            # The file first: the document and the summary still are whole if it can't be written.
            failed = try_save(answer)
            if ((stats and not quiet) or form in ("json", "ndjson")) and not signals.exit_code:
                _measure_baseline(generation, baseline, messages, signals)
            if failed:
                raise failed
            report = generation.report()
            answer.finish(report)
            if stats:
                messages.summary(report)
            _keep_costs(models)
        except BrokenPipeError:
            discard_stdout()
            # Who left did not want the rest; whoever named a file still does.
            if code := save_partial_answer(answer, messages):
                raise typer.Exit(signals.exit_code or code) from None
        except Stopped as stopped:
            finish_stopped(stopped, answer, messages, generation)
            raise typer.Exit(stopped.exit_code) from None
        except SpecgenError as error:
            finish_failed(error, answer, messages, generation, stats)
            messages.error(error)
            raise typer.Exit(error.exit_code) from error
        except Exception as error:
            told = internal_error(error)
            finish_failed(told, answer, messages, generation, stats)
            told.is_reported = True
            raise told from error
        if signals.exit_code:
            raise typer.Exit(signals.exit_code)


def _run(
    generation: Generation, answer: AnswerOutput, messages: Messages, signals: StopSignals, terminal_mode: TerminalMode
) -> None:
    generation.clock = terminal_mode.without_suspension(generation.clock)
    for notice in generation.models.notices:
        messages.warning(notice)
    answer.start(generation.info)
    try:
        for event in generation:
            if terminal_mode.was_suspended:
                terminal_mode.was_suspended = False
                answer.restart_view()
            answer.show(event)
            # From here on there is a next round to stop behind. A long prompt is stopped where it is.
            signals.listener = generation.interrupt
    finally:
        signals.listener = None
        answer.close()
    for notice in generation.notices:
        messages.warning(notice)


def _measure_baseline(generation: Generation, method: BaselineMethod, messages: Messages, signals: StopSignals) -> None:
    """Time the target alone. The answer is finished: what goes wrong here costs the comparison, nothing else."""
    signals.listener = generation.interrupt
    try:
        generation.measure_baseline(method)
    except Exception as error:  # noqa: BLE001 - a bug of ours included
        told = error if isinstance(error, SpecgenError) else internal_error(error)
        messages.warning(f"the target alone was not timed: {told.message}")
    finally:
        signals.listener = None


def _prepare(verbose: bool) -> None:
    from specgen.loading.libraries import prepare_libraries

    prepare_libraries(verbose)


def _pair(settings: PairSettings, progress: LoadProgress) -> Pair:
    from specgen.runtime.pair import resolve_pair

    return resolve_pair(settings, progress)


def _open(pair: Pair, progress: LoadProgress) -> LoadedModels:
    from specgen.runtime import learned_costs
    from specgen.runtime.loaded_models import load_models

    models = load_models(pair, progress)
    learned_costs.load(models)
    return models


def _keep_costs(models: LoadedModels) -> None:
    from specgen.runtime import learned_costs

    learned_costs.save(models)


def _new_generation(models: LoadedModels, request: Request) -> Generation:
    from specgen.runtime.generation import Generation

    return Generation(models, request)
