"""Runs `specgen verify`: checks that drafts do not change the output of a pair of models."""

from __future__ import annotations

from specgen.cli.request import parse_draft_length, parse_tree
from specgen.cli.streams import Messages, discard_stdout, loading, print_text, require_stdout, write_document
from specgen.cli.verify.options import VerifyOptions
from specgen.core.errors import DifferenceError, SettingsError
from specgen.core.settings import DecodeSettings
from specgen.render.verify import format_verify_report, verify_document
from specgen.verify.results import VerifyReport


def run(options: VerifyOptions) -> int:
    """Checks a pair, prints the report and returns the exit code."""
    num_draft_tokens, schedule = parse_draft_length(options.draft_tokens)
    if options.models.draft.kind == "none" or not num_draft_tokens:
        raise SettingsError(
            "verify compares a run with drafts, but --draft none or -k 0 drafts nothing",
            "give --draft MODEL or lookup, and -k above 0",
        )
    num_nodes, tree_schedule = parse_tree(options.tree)
    limits = DecodeSettings(
        options.max_new_tokens, num_draft_tokens, schedule, num_tree_nodes=num_nodes, tree_schedule=tree_schedule
    )
    messages = Messages(options.color, options.verbosity.quiet)
    require_stdout("the report")
    with loading(messages, options.verbosity) as progress:
        from specgen.cli.verify.checks import run_checks  # torch

        report = run_checks(options, limits, progress)
    for notice in report.notices:
        messages.warning(notice)
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
