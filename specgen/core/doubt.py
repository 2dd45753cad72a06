"""Decides whether the timing of a run is doubtful: then its speedup says nothing, and its costs are not stored."""

from __future__ import annotations

from enum import StrEnum

from specgen.core.cost_model import is_unlike
from specgen.core.results import RunReport

MAX_NOISE = 1.1
"""A round takes at least a step of the baseline: except for noise, a speedup is at most the tokens per round."""


class Doubt(StrEnum):
    """Reasons to take a speedup for an error of timing."""

    NOTHING_DRAFTED = "nothing_drafted"
    IMPOSSIBLE = "impossible"
    UNLIKE_PREDICTED = "unlike_predicted"


def find_doubt(report: RunReport) -> Doubt | None:
    """Returns the reason to doubt the speedup of a run, if there is one."""
    speedup, counts = report.speedup, report.counts
    if not speedup or report.info.drafter in ("none", "server"):
        return None
    if not counts.num_drafted:
        return Doubt.NOTHING_DRAFTED
    if speedup > MAX_NOISE * counts.timed.tokens_per_round:
        return Doubt.IMPOSSIBLE
    if report.forecast is not None and is_unlike(speedup, report.forecast.speedup):
        return Doubt.UNLIKE_PREDICTED
    return None


def was_disturbed(report: RunReport) -> bool:
    """Returns whether other programs, or something else, probably disturbed the timing of a run."""
    return find_doubt(report) in (Doubt.IMPOSSIBLE, Doubt.UNLIKE_PREDICTED)
