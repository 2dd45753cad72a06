"""Runs `specgen verify`: checks that drafts do not change the output of a pair of models."""

from __future__ import annotations

from specgen.cli.interruption import exit_stopped
from specgen.cli.prompt_input import as_utf8
from specgen.cli.request import parse_draft_length
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.start import loading
from specgen.cli.stdout import discard_stdout, require_stdout
from specgen.cli.streams import Messages, print_text, write_document
from specgen.cli.verify.options import VerifyOptions
from specgen.core.errors import DifferenceError, SettingsError
from specgen.core.progress import ProgressListener
from specgen.core.settings import DecodeSettings
from specgen.render.verify import format_verify_report, verify_document
from specgen.runtime.pair import pair_settings
from specgen.verify.results import VerifyReport

PROMPTS = (
    "Explain how a binary search works, with a short example.",
    "Write a Python function that reverses a linked list.",
    "List the planets of the solar system and one fact about each.",
    "Repeat this line three times: the quick brown fox jumps over the lazy dog.",
)


def run(options: VerifyOptions) -> int:
    """Checks a pair, prints the report and returns the exit code."""
    num_draft_tokens, schedule = parse_draft_length(options.draft_tokens)
    if options.models.draft == "none" or not num_draft_tokens:
        raise SettingsError(
            "verify compares a run with drafts, but --draft none or -k 0 drafts nothing",
            "give --draft MODEL or lookup, and -k above 0",
        )
    limits = DecodeSettings(options.max_new_tokens, num_draft_tokens, schedule)
    messages = Messages(options.color, options.verbosity.quiet)
    require_stdout("the report")
    with StopSignals():
        try:
            with loading(messages, options.verbosity) as progress:
                report = _run_checks(options, limits, progress)
        except Stopped as stopped:
            exit_stopped(stopped, as_json=options.json)
    try:
        if options.json:
            write_document(verify_document(report))
        else:
            print_text(format_verify_report(report), options.color)
    except BrokenPipeError:
        discard_stdout()
    if report.has_real_difference:
        messages.error(_difference(report))
        return DifferenceError.exit_code
    return 0


def _run_checks(options: VerifyOptions, limits: DecodeSettings, progress: ProgressListener) -> VerifyReport:
    from specgen.cli.verify.checks import run_checks

    backend = options.backend.settings()
    pair = pair_settings(
        options.load.target_settings(options.models.target, backend),
        options.load.draft_settings(options.models.draft, backend),
    )
    texts = [as_utf8(text, "the prompt") for text in options.prompts or PROMPTS]
    return run_checks(pair, texts, limits, options.against, progress)


def _difference(report: VerifyReport) -> DifferenceError:
    checks = report.comparisons
    different = [(check, check.gap) for check in checks if check.gap is not None and not check.gap.is_near_tie]
    if not different:
        return DifferenceError(
            "the sampler's distribution on toy models differs from the target's", "this is a bug of specgen: report it"
        )
    hint = (
        "--draft none gives the target's own text"
        if report.info.guarantee == "none"
        else "if --dtype float32 --quant none differs as well, this is a bug: report it"
    )
    first, gap = different[0]
    return DifferenceError(
        f"{len(different)} of {len(checks)} greedy texts differ from the target's own, the first at token "
        f"{first.position} by {gap.distance:.2g}; rounding explains {gap.tolerance:.2g}",
        hint,
    )
