"""`specgen doctor`: what this machine, and a pair of models on it, can do. Heavy modules are imported inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.interruption import exit_stopped
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import discard_stdout, require_stdout, use_utf8_stdout
from specgen.core.errors import MemoryShortageError, PairError, SettingsError, SpecgenError
from specgen.core.settings import BackendSettings, ModelSettings

if TYPE_CHECKING:
    from specgen.cli.streams import Messages
    from specgen.core.progress import ProgressListener
    from specgen.doctor.results import PairReport, TerminalState
    from specgen.runtime.pair import PairSettings

EPILOG = "\n\n".join(
    [
        "Without --measure no weights are read: sizes and compatibility come from configs, headers and tokenizers. A "
        "hub model that is not here yet is downloaded.",
        "Examples:",
        "specgen doctor",
        "specgen doctor -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --measure",
    ]
)


def doctor(
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            "--model",
            "-m",
            metavar="MODEL",
            help='A model to look at: hub id, folder or .gguf file; "" is the built-in one.',
            rich_help_panel=o.MODELS,
            show_default=False,
        ),
    ] = None,
    draft: Annotated[
        str,
        typer.Option(
            "--draft", "-d", metavar="MODEL[+lookup]|auto|lookup|none", help="A draft for it.", rich_help_panel=o.MODELS
        ),
    ] = "none",
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
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            help="Positions to plan memory for; default: the window, at most 4096.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the models and time passes over 1 to 13 tokens.")
    ] = False,
    alphas: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="With --measure: the best draft length at this acceptance; can be repeated. Default: 0.5 to 0.9.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.", rich_help_panel=o.OUTPUT)] = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Tell what this machine and its libraries can do, and whether a pair of models fits it and each other."""
    from specgen.cli.request import pair_settings
    from specgen.cli.streams import Messages

    if target is None and (draft != "none" or measure):
        raise SettingsError("--draft and --measure need a target", 'give one with -t; -t "" is the built-in model')
    messages = Messages("auto", quiet)
    require_stdout("the findings")
    wanted = None
    if target is not None:
        engine = BackendSettings(backend, gpu_layers, context_size, threads)
        wanted = pair_settings(
            ModelSettings(target, quant, dtype, device, revision, offline, engine),
            ModelSettings(draft, draft_quant, dtype, draft_device or device, draft_revision, offline, engine),
        )
    with StopSignals() as signals:
        try:
            error = _examine(wanted, context, measure, alphas, as_json, messages, verbose)
        except BrokenPipeError:
            discard_stdout()
            return
        except Stopped as stopped:
            exit_stopped(stopped, as_json=as_json)
        if signals.exit_code:
            raise typer.Exit(signals.exit_code)
    if error is not None:
        raise error


def _examine(
    wanted: PairSettings | None,
    context: int | None,
    measure: bool,
    alphas: Sequence[float] | None,
    as_json: bool,
    messages: Messages,
    verbose: int,
) -> SpecgenError | None:
    """Look and tell. What is wrong with the pair comes after what is known of the machine."""
    from specgen.loading.libraries import prepare_libraries
    from specgen.render.progress import LoadProgress

    prepare_libraries(verbose > 1)
    from rich.text import Text

    from specgen.doctor.examine import examine_caches, examine_libraries
    from specgen.doctor.results import SystemReport
    from specgen.render.doctor import ALPHAS, doctor_document, format_pair, format_system
    from specgen.render.json_text import dumps
    from specgen.render.jsonl import error_document
    from specgen.render.layout import fit_block
    from specgen.render.plain import ByteSink
    from specgen.render.terminal import is_ascii_only, make_console
    from specgen.runtime.environment import inspect_machine

    error: SpecgenError | None = None
    pair_report: PairReport | None = None
    with LoadProgress(messages.console, quiet=messages.quiet, verbose=verbose > 0) as progress:
        progress.stage("looking at the machine")
        machine = inspect_machine()
        libraries, caches = examine_libraries(machine), examine_caches()
        if wanted is not None:
            pair_report, error = _pair(wanted, context, measure, progress)
    system = SystemReport(machine, libraries, _terminal(), tuple(caches))
    if error is None and pair_report is not None and any(device.fits is False for device in pair_report.devices):
        tight = next(device for device in pair_report.devices if device.fits is False)
        fix = "--context-size or " if pair_report.models[0].dtype == "mixed" else "--quant nf4 or "
        error = MemoryShortageError(
            f"the models do not fit into the memory of {tight.device}", f"try {fix}a smaller model, or no draft"
        )
    if as_json:
        told = None if error is None else error_document(error)
        document = doctor_document(system, pair_report, told, alphas or ALPHAS)
        ByteSink(sys.stdout.buffer).write((dumps(document) + "\n").encode())
        if error is not None:
            error.is_reported = True
        return error
    console = make_console(sys.stdout, "auto", os.environ)
    ascii_only = is_ascii_only(console)
    use_utf8_stdout()  # only now: the signs of ours are those the terminal knows, and paths are what they are
    blocks = [format_system(system, ascii_only=ascii_only)]
    if pair_report is not None:
        blocks.append(format_pair(pair_report, alphas or ALPHAS, ascii_only=ascii_only))
    console.print(fit_block(Text("\n\n").join(blocks), console))
    return error


def _pair(
    wanted: PairSettings, context: int | None, measure: bool, progress: ProgressListener
) -> tuple[PairReport | None, SpecgenError | None]:
    """What is known of a pair, and what went wrong: a plan stands when its measurement fails, the target's when the
    draft does not go with it."""
    from specgen.bench.prompts import bundled_prompts
    from specgen.doctor.examine import examine_pair, measure_pair
    from specgen.runtime.pair import resolve_pair
    from specgen.text.chat_template import encode_text

    pair_report: PairReport | None = None
    try:
        try:
            pair = resolve_pair(wanted, progress)
        except PairError:
            with suppress(SpecgenError):
                pair_report = examine_pair(resolve_pair(replace(wanted, drafter="none", draft=None), progress), context)
            raise
        pair_report = examine_pair(pair, context)
        if not measure or any(device.fits is False for device in pair_report.devices):
            return pair_report, None
        longest = max((prompt.messages[0].content for prompt in bundled_prompts()), key=len)
        return measure_pair(pair, pair_report, encode_text(pair.tokenizer, longest), progress), None
    except SpecgenError as error:
        return pair_report, error


def _terminal() -> TerminalState:
    import shutil

    from specgen.doctor.results import TerminalState
    from specgen.render.terminal import decide_color, is_terminal

    shown = is_terminal(sys.stdout)
    return TerminalState(
        is_terminal=shown,
        columns=shutil.get_terminal_size().columns if shown else None,
        color=decide_color("auto", sys.stdout, os.environ).level.value,
        encoding=sys.stdout.encoding,
        term=os.environ.get("TERM", ""),
    )
