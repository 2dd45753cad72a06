"""Says why a speedup is doubtful, why a run was slower than the baseline, and what to try instead."""

from __future__ import annotations

from enum import StrEnum

from specgen.core.doubt import Doubt, find_doubt
from specgen.core.results import RunReport

LARGE_DRAFT_SHARE = 0.4
"""From here on drafting takes about as long as it should save."""
LOW_ALPHA = 0.5
"""Below this, two draft tokens in a row are accepted in less than a quarter of the cases."""
PAUSED_ROUNDS = 4
"""Rounds per tested draft token from which `auto` has mostly not drafted."""


class Cause(StrEnum):
    """Causes of a speedup below 1."""

    DRAFTING_PAUSED = "drafting_paused"
    EXPENSIVE_DRAFT = "expensive_draft"
    LOW_ACCEPTANCE = "low_acceptance"
    EXPENSIVE_VERIFICATION = "expensive_verification"


def find_causes(report: RunReport) -> tuple[Cause, ...]:
    """Returns the causes of a speedup below 1; none for a larger or a doubtful one."""
    speedup, counts = report.speedup, report.counts
    if not speedup or speedup >= 1 or report.info.drafter == "none" or find_doubt(report):
        return ()
    if not counts.num_rounds or counts.is_all_warmup:
        return ()
    if report.info.schedule == "auto" and counts.num_rounds > PAUSED_ROUNDS * counts.num_tested:
        return (Cause.DRAFTING_PAUSED,)
    causes = [Cause.EXPENSIVE_DRAFT] if _is_draft_expensive(report) else []
    causes += [Cause.LOW_ACCEPTANCE] if _is_alpha_low(report) else []
    return tuple(causes) or (Cause.EXPENSIVE_VERIFICATION,)


def find_remedies(report: RunReport) -> tuple[str, ...]:
    """Returns options and models to try after a slow run; none if nothing was drafted."""
    if not report.counts.num_drafted:
        return ()
    info = report.info
    # auto has searched for the best length already.
    remedies = [f"-k {info.num_draft_tokens // 2}"] if info.num_draft_tokens > 1 and info.schedule == "constant" else []
    if info.draft is not None and _is_draft_expensive(report):
        remedies.append("a smaller or quantized draft model")
    elif info.draft is not None and _is_alpha_low(report):
        remedies.append("another draft model")
    return (*remedies, "--draft none")


def explain_doubt(doubt: Doubt, report: RunReport) -> str:
    """Returns the doubt in a sentence without its full stop."""
    match doubt:
        case Doubt.NOTHING_DRAFTED:
            return "nothing was drafted, so the difference is timing noise"
        case Doubt.IMPOSSIBLE:
            tokens = report.counts.timed.tokens_per_round
            return f"impossible with {tokens:.2f} tokens per round, so one of the two timings was disturbed"
        case Doubt.UNLIKE_PREDICTED:
            return "the measured and the predicted speedup are too far apart, so one of them was disturbed"


def explain_causes(causes: tuple[Cause, ...], report: RunReport) -> str:
    """Returns the causes in a sentence without its full stop: what a round costs and yields, then why."""
    counts, baseline = report.counts, report.baseline
    if Cause.DRAFTING_PAUSED in causes or baseline is None:
        return "drafting did not pay here, so most rounds did not draft; the loss is the cost of trying"
    timed = counts.timed
    round_seconds = timed.num_rounds * baseline.tpot_seconds
    steps, tokens = timed.seconds / round_seconds, timed.tokens_per_round
    num_checked = round(sum(n * num for n, num in enumerate(counts.fed_histogram)) / timed.num_rounds, 1)
    sentences = {
        Cause.EXPENSIVE_DRAFT: f"drafting takes {100 * (counts.draft_share or 0):.0f} % of the time",
        Cause.LOW_ACCEPTANCE: f"only {100 * (counts.alpha or 0):.0f} % of the tested draft tokens were right",
        Cause.EXPENSIVE_VERIFICATION: f"for this target, checking {num_checked:g} tokens at once takes "
        f"{counts.verify_seconds / round_seconds:.1f}x as long as a single token",
    }
    why = " and ".join(sentences[cause] for cause in causes)
    return f"a round takes as long as {steps:.1f} steps of the target alone and yields {tokens:.1f} tokens: {why}"


def _is_draft_expensive(report: RunReport) -> bool:
    return (report.counts.draft_share or 0) >= LARGE_DRAFT_SHARE


def _is_alpha_low(report: RunReport) -> bool:
    return report.counts.alpha is not None and report.counts.alpha < LOW_ALPHA
