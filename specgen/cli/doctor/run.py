"""Runs `specgen doctor`: reports what this machine, and a pair of models on it, can do."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.doctor.options import DoctorOptions
from specgen.cli.interruption import exit_stopped
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.start import loading
from specgen.cli.stdout import discard_stdout, require_stdout, use_utf8_stdout
from specgen.cli.streams import Messages, write_document
from specgen.core.errors import SettingsError
from specgen.core.progress import ProgressListener
from specgen.doctor.results import SystemReport, TerminalState
from specgen.render.doctor import ALPHAS, doctor_document, format_pair, format_system
from specgen.render.formatting import fit_block
from specgen.render.jsonl import error_document
from specgen.render.terminal import decide_color, is_ascii_only, is_terminal, make_console
from specgen.runtime.pair import pair_settings

if TYPE_CHECKING:
    from specgen.cli.doctor.findings import Findings


def run(options: DoctorOptions) -> int:
    """Examines the machine and the models, prints the findings and returns the exit code.

    Raises:
        SpecgenError: Something is wrong with the models; the findings are printed.
    """
    if options.target is None and (options.draft != "none" or options.measure):
        raise SettingsError("--draft and --measure need a target", 'give one with -t; -t "" is the built-in model')
    messages = Messages("auto", options.verbosity.quiet)
    require_stdout("the findings")
    with StopSignals() as signals:
        try:
            with loading(messages, options.verbosity) as progress:
                findings = _examine(options, progress)
            _print(findings, options)
        except BrokenPipeError:
            discard_stdout()
            return 0
        except Stopped as stopped:
            exit_stopped(stopped, as_json=options.json)
        if signals.exit_code:
            return signals.exit_code
    if findings.error is not None:
        findings.error.is_reported = options.json
        raise findings.error
    return 0


def _examine(options: DoctorOptions, progress: ProgressListener) -> Findings:
    from specgen.cli.doctor.findings import PairRequest, examine

    if options.target is None:
        return examine(None, progress)
    backend = options.backend.settings()
    settings = pair_settings(
        options.load.target_settings(options.target, backend), options.load.draft_settings(options.draft, backend)
    )
    return examine(PairRequest(settings, options.context_tokens, options.measure), progress)


def _print(findings: Findings, options: DoctorOptions) -> None:
    alphas, pair = options.alphas or ALPHAS, findings.pair
    system = SystemReport(findings.machine, findings.libraries, _terminal(), tuple(findings.caches))
    if options.json:
        error = None if findings.error is None else error_document(findings.error)
        write_document(doctor_document(system, pair, error, alphas))
        return
    console = make_console(sys.stdout, "auto", os.environ)
    ascii_only = is_ascii_only(console)
    # After the console is made: it chooses its characters by the terminal's encoding, but paths may hold any.
    use_utf8_stdout()
    blocks = [format_system(system, ascii_only=ascii_only)]
    if pair is not None:
        blocks.append(format_pair(pair, alphas, ascii_only=ascii_only))
    console.print(fit_block(Text("\n\n").join(blocks), console))


def _terminal() -> TerminalState:
    shown = is_terminal(sys.stdout)
    return TerminalState(
        is_terminal=shown,
        columns=shutil.get_terminal_size().columns if shown else None,
        color=decide_color("auto", sys.stdout, os.environ).level.value,
        encoding=sys.stdout.encoding,
        term=os.environ.get("TERM", ""),
    )
