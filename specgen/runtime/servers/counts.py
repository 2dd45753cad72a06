"""Turns what a server reports about its drafts into counts, with the level of detail that it allows."""

from __future__ import annotations

from dataclasses import replace

from specgen.core.metrics import Counts, Detail
from specgen.runtime.servers.live import LiveRounds
from specgen.runtime.servers.values import Acceptance


def with_rounds(found: Acceptance | None, rounds: LiveRounds) -> Acceptance | None:
    """Adds the rounds that were seen live, if their sums are those of the whole answer."""
    if found is None or found.num_rounds is not None or not rounds.fits:
        return found
    seen = replace(found, num_rounds=len(rounds.steps), steps=tuple(rounds.steps))
    seen = replace(seen, num_rejected=sum(accepted < drafted for drafted, accepted in rounds.steps))
    sums = (sum(drafted for drafted, _ in seen.steps), sum(accepted for _, accepted in seen.steps))
    return seen if sums == (found.num_drafted, found.num_accepted) and seen.is_consistent else found


def count_acceptance(counts: Counts, found: Acceptance) -> None:
    """Adds a server's counts of drafts to those of its answer, with their level of detail."""
    counts.num_drafted, counts.num_accepted = found.num_drafted, found.num_accepted
    counts.num_rounds, counts.num_rejected = found.num_rounds or 0, found.num_rejected or 0
    for drafted, accepted in found.steps:
        counts.observe_positions(drafted, accepted)
    if not found.steps:
        counts.accepted_histogram = list(found.accepted_histogram)
    counts.detail = Detail.TOTALS if found.num_rounds is None else Detail.ROUNDS
    if found.num_rejected is not None:
        counts.detail = Detail.ALL
