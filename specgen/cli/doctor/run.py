"""Runs `specgen doctor`: reports what this machine, and a pair of models on it, can do."""

from __future__ import annotations

import os
import shutil
import sys

from rich.text import Text

from specgen.cli.doctor.options import DoctorOptions
from specgen.cli.streams import Messages, loading, require_stdout, use_utf8_stdout, write_document
from specgen.core.errors import SettingsError
from specgen.core.settings import PairSettings
from specgen.doctor.results import Findings, TerminalState
from specgen.render.doctor import ALPHAS, doctor_document, format_pair, format_system
from specgen.render.formatting import fit_block
from specgen.render.jsonl import error_document
from specgen.render.terminal import decide_color, is_ascii_only, is_terminal, make_console


def run(options: DoctorOptions) -> int:
    """Examines the machine and the models, prints the findings and returns the exit code.

    Raises:
        SpecgenError: Something is wrong with the models; the findings are printed.
    """
    if options.server:
        from specgen.cli.doctor.served import run_served

        require_stdout("the findings")
        return run_served(options)
    if options.target is None and (options.draft.kind != "none" or options.measure):
        raise SettingsError("--draft and --measure need a target", 'give one with -t; -t "" is the built-in model')
    messages = Messages("auto", options.verbosity.quiet)
    require_stdout("the findings")
    with loading(messages, options.verbosity) as progress:
        from specgen.doctor.examine import examine  # torch

        findings = examine(
            _pair_settings(options), _terminal(), progress, options.context_tokens, measures=options.measure
        )
    _print(findings, options)
    if findings.error is not None:
        findings.error.is_reported = options.json
        raise findings.error
    return 0


def _pair_settings(options: DoctorOptions) -> PairSettings | None:
    if options.target is None:
        return None
    return options.load.pair_settings(options.target, options.draft, options.backend.settings())


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
