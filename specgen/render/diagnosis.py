"""A run in; why its speedup is doubtful, or why speculation slowed it down, and one thing to try, out. Pure."""

from __future__ import annotations

from specgen.core.cost_model import is_unlike
from specgen.core.results import RunReport

LARGE_DRAFT_SHARE = 0.4
"""From here on the drafter takes about as long as what it should save."""
IMPOSSIBLE = 1.1
"""A round takes at least a step of the target alone: but for noise, a speedup is at most the tokens per round."""
LOW_ALPHA = 0.5
"""Below this, two drafted tokens in a row are kept less often than one time in four."""


def why_doubtful(report: RunReport) -> str:
    """Why a speedup is one of timing only; empty where nothing speaks against it."""
    speedup, counts = report.speedup, report.counts
    if not speedup or report.info.drafter == "none":
        return ""
    if not counts.num_drafted:
        return "nothing was drafted, so the two differ by the noise of timing only"
    most = counts.block_efficiency
    if most is not None and speedup > IMPOSSIBLE * most:
        return f"not possible with {most:.2f} tokens per round, so one of the two timings was disturbed"
    if report.forecast is not None and is_unlike(speedup, report.forecast.speedup):
        return "measured and predicted are too far apart, so one of them was disturbed"
    return ""


def why_slower(report: RunReport) -> str:
    """One or two sentences for a run with a speedup below 1; empty for any other, and for a doubtful one.

    A round pays if it costs fewer steps of the target alone than it yields tokens; that is said first, then which
    part of the cost or yield is to blame.
    """
    speedup, baseline, counts = report.speedup, report.baseline, report.counts
    if not speedup or speedup >= 1 or baseline is None or report.info.drafter == "none":
        return ""
    if why_doubtful(report):
        return ""
    if report.info.schedule == "auto" and counts.num_rounds > 4 * counts.num_rejected + 4 * counts.num_accepted:
        return "drafting did not pay here and was left off most of the time; what it cost is the tries"
    num_steps = counts.decode_seconds / counts.num_rounds / baseline.tpot_seconds
    num_tokens = counts.num_emitted / counts.num_rounds
    sums = f"a round takes as long as {num_steps:.1f} steps of the target alone and yields {num_tokens:.1f} tokens"
    return f"{sums}: {_cause(report)}"


def what_to_try(report: RunReport) -> str:
    """One concrete thing to try after `why_slower`; empty where nothing is to blame."""
    if not report.counts.num_drafted:
        return ""
    num_draft_tokens = report.info.num_draft_tokens
    # auto has looked for the best length already.
    choices = [f"-k {num_draft_tokens // 2}"] if num_draft_tokens > 1 and report.info.schedule == "constant" else []
    if _is_draft_expensive(report) and report.info.draft is not None:
        choices.append("a smaller or quantized draft model")
    elif _is_alpha_low(report) and report.info.draft is not None:
        choices.append("another draft model")
    choices.append("--draft none")
    return " or ".join(choices) if len(choices) < 3 else f"{choices[0]}, {choices[1]}, or {choices[2]}"


def _cause(report: RunReport) -> str:
    counts = report.counts
    causes: list[str] = []
    if _is_draft_expensive(report):
        causes.append(f"drafting takes {100 * (counts.draft_share or 0):.0f} % of the time")
    if _is_alpha_low(report):
        causes.append(f"only {100 * (counts.alpha or 0):.0f} % of the tested draft tokens were right")
    return " and ".join(causes) or _verification_cost(report)


def _is_draft_expensive(report: RunReport) -> bool:
    share = report.counts.draft_share
    return share is not None and share >= LARGE_DRAFT_SHARE


def _is_alpha_low(report: RunReport) -> bool:
    alpha = report.counts.alpha
    return alpha is not None and alpha < LOW_ALPHA


def _verification_cost(report: RunReport) -> str:
    counts, baseline = report.counts, report.baseline
    if baseline is None:
        return ""
    ratio = counts.verify_seconds / counts.num_rounds / baseline.tpot_seconds
    num_positions = counts.num_drafted / counts.num_rounds + 1
    return f"checking {round(num_positions, 1):g} tokens at once costs this target {ratio:.1f}x a single token"
