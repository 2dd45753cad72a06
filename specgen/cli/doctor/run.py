"""Runs `specgen doctor`: reports what this machine, and a pair of models on it, can do."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.text import Text

from specgen.cli.doctor.options import DoctorOptions
from specgen.cli.streams import Messages, loading, require_stdout, use_utf8_stdout, write_document
from specgen.core.errors import MemoryShortageError, PairError, SettingsError, SpecgenError
from specgen.core.progress import ProgressListener
from specgen.doctor.results import PairReport, SystemReport, TerminalState
from specgen.render.doctor import ALPHAS, doctor_document, format_pair, format_system
from specgen.render.formatting import fit_block
from specgen.render.jsonl import error_document
from specgen.render.terminal import decide_color, is_ascii_only, is_terminal, make_console
from specgen.runtime.pair import PairSettings, pair_settings, resolve_pair
from specgen.text.chat_template import encode_text
from specgen.text.prompts import bundled_prompts


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of the machine and a pair of models on it.

    Args:
        system: The machine.
        pair: The models; None if none were given or the target can't be examined.
        error: What is wrong with the pair; None if nothing is.
    """

    system: SystemReport
    pair: PairReport | None = None
    error: SpecgenError | None = None


def run(options: DoctorOptions) -> int:
    """Examines the machine and the models, prints the findings and returns the exit code.

    Raises:
        SpecgenError: Something is wrong with the models; the findings are printed.
    """
    if options.server:
        from specgen.cli.doctor.served import run_served

        require_stdout("the findings")
        return run_served(options)
    if options.target is None and (options.draft != "none" or options.measure):
        raise SettingsError("--draft and --measure need a target", 'give one with -t; -t "" is the built-in model')
    messages = Messages("auto", options.verbosity.quiet)
    require_stdout("the findings")
    with loading(messages, options.verbosity) as progress:
        findings = _examine(options, progress)
    _print(findings, options)
    if findings.error is not None:
        findings.error.is_reported = options.json
        raise findings.error
    return 0


def _examine(options: DoctorOptions, progress: ProgressListener) -> Findings:
    # These import torch.
    from specgen.doctor.examine import examine_caches, examine_libraries
    from specgen.runtime.environment import inspect_machine

    progress.stage("examining the machine")
    machine = inspect_machine()
    system = SystemReport(machine, examine_libraries(machine), _terminal(), tuple(examine_caches()))
    if options.target is None:
        return Findings(system)
    backend = options.backend.settings()
    target = options.load.target_settings(options.target, backend)
    settings = pair_settings(target, options.load.draft_settings(options.draft, backend))
    pair, error = _examine_pair(settings, options, progress)
    return Findings(system, pair, error or (_memory_error(pair) if pair is not None else None))


def _examine_pair(
    settings: PairSettings, options: DoctorOptions, progress: ProgressListener
) -> tuple[PairReport | None, SpecgenError | None]:
    """Returns what is known of the pair, and what went wrong.

    If the measurement fails, the memory plan is still returned; if draft and target don't fit together, the target's.
    """
    from specgen.doctor.examine import examine_pair, measure_pair

    report = None
    try:
        try:
            pair = resolve_pair(settings, progress)
        except PairError:
            with suppress(SpecgenError):
                alone = replace(settings, drafter="none", draft=None)
                report = examine_pair(resolve_pair(alone, progress), options.context_tokens)
            raise
        report = examine_pair(pair, options.context_tokens)
        if not options.measure or any(device.fits is False for device in report.devices):
            return report, None
        longest = max((prompt.messages[0].content for prompt in bundled_prompts()), key=len)
        return measure_pair(pair, report, encode_text(pair.tokenizer, longest), progress), None
    except SpecgenError as error:
        return report, error


def _memory_error(pair: PairReport) -> MemoryShortageError | None:
    full = next((device for device in pair.devices if device.fits is False), None)
    if full is None:
        return None
    option = "--context-size" if pair.models[0].dtype == "mixed" else "--quant nf4"
    return MemoryShortageError(
        f"the models do not fit into the memory of {full.device}", f"try {option} or a smaller model, or no draft"
    )


def _terminal() -> TerminalState:
    shown = is_terminal(sys.stdout)
    return TerminalState(
        is_terminal=shown,
        columns=shutil.get_terminal_size().columns if shown else None,
        color=decide_color("auto", sys.stdout, os.environ).value,
        encoding=sys.stdout.encoding,
        term=os.environ.get("TERM", ""),
    )


def _print(findings: Findings, options: DoctorOptions) -> None:
    alphas, pair = options.alphas or ALPHAS, findings.pair
    if options.json:
        error = None if findings.error is None else error_document(findings.error)
        write_document(doctor_document(findings.system, pair, error, alphas))
        return
    console = make_console(sys.stdout, "auto", os.environ)
    ascii_only = is_ascii_only(console)
    # After the console is made: it chooses its characters by the terminal's encoding, but paths may hold any.
    use_utf8_stdout()
    blocks = [format_system(findings.system, ascii_only=ascii_only)]
    if pair is not None:
        blocks.append(format_pair(pair, alphas, ascii_only=ascii_only))
    console.print(fit_block(Text("\n\n").join(blocks), console))
