"""Counts of a run and what passes cost in; the speedup these explain, and what fixed draft lengths would give, out.

Only costs are taken from the model of costs: how many tokens were drafted and kept is counted, so nothing is assumed
about draft tokens being accepted independently of each other, which they are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specgen.core.metrics import Counts

UNLIKE = 1.5
"""Measured and predicted speedups further apart than this are no two views of one machine."""
MIN_TESTED = 4
"""Draft tokens tested at a position before its acceptance is used."""


@dataclass(frozen=True, slots=True)
class PassCosts:
    """What the parts of a round cost, in seconds.

    Args:
        verify_seconds: v(n): a pass of the target over n tokens, by n.
        draft_seconds: A draft token; with `is_per_round` a whole proposal, as a lookup makes it.
        is_per_round: See there.
        catch_up_seconds: What the first draft token costs more behind a draft that was kept whole: the draft model has
            not read its own last token.
        round_seconds: Accepting, cutting and rewinding, per round.
        plain_round_seconds: Likewise for the target alone.
    """

    verify_seconds: Mapping[int, float]
    draft_seconds: float
    is_per_round: bool = False
    catch_up_seconds: float = 0.0
    round_seconds: float = 0.0
    plain_round_seconds: float = 0.0

    @property
    def plain_seconds(self) -> float | None:
        """A token of the target alone."""
        one = interpolated(self.verify_seconds, 1)
        return None if one is None else one + self.plain_round_seconds

    def drafting(self, num_tokens: int) -> float:
        """A draft of so many tokens, catching up left out."""
        return self.draft_seconds * (1 if self.is_per_round else num_tokens)


def is_unlike(measured: float | None, predicted: float | None) -> bool:
    """Whether one of two speedups must have been disturbed; unknown ones tell nothing."""
    if not measured or not predicted:
        return False
    return not 1 / UNLIKE < measured / predicted < UNLIKE


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the model of costs says about a run.

    Args:
        speedup: At the draft lengths that were used; None if a cost is unknown.
        by_length: Speedup with a fixed draft length instead, for the lengths the run tells enough about.
    """

    speedup: float | None
    by_length: Mapping[int, float]


def forecast(counts: Counts, costs: PassCosts) -> Forecast:
    """What the costs predict for the rounds of a run, and for other draft lengths."""
    by_length = {}
    for num_draft_tokens in range(1, len(counts.tested_by_position) + 1):
        speedup = fixed_speedup(counts, costs, num_draft_tokens)
        if speedup is None:
            break
        by_length[num_draft_tokens] = speedup
    return Forecast(predicted_speedup(counts, costs), by_length)


def predicted_speedup(counts: Counts, costs: PassCosts) -> float | None:
    """What the costs of passes predict for these rounds, whatever the clock said in the run.

    Every token of the target alone costs v(1). A round costs its draft, v(drafted + 1) and what is done around them.
    A draft behind rounds without one first reads what was missed, which takes as long as it takes: it is as measured.
    """
    plain = costs.plain_seconds
    if plain is None or not counts.num_rounds:
        return None
    seconds = counts.num_rounds * costs.round_seconds
    for num_drafted, num_rounds in enumerate(counts.drafted_histogram):
        verify = interpolated(costs.verify_seconds, num_drafted + 1)
        if num_rounds and verify is None:
            return None
        seconds += num_rounds * (verify or 0.0)
    if costs.is_per_round:
        seconds += counts.num_rounds * costs.draft_seconds
    else:
        num_whole = counts.num_rounds - counts.num_plain_rounds - counts.num_rejected
        # What lookup found beside the model took no time worth counting.
        num_drawn = counts.num_drafted + counts.num_cut - counts.num_resumed - counts.num_lookup_drafted
        seconds += costs.draft_seconds * max(num_drawn, 0)
        seconds += counts.resumed_seconds + costs.catch_up_seconds * max(num_whole - 1, 0)
    return counts.num_emitted * plain / seconds if seconds else None


def fixed_speedup(counts: Counts, costs: PassCosts, num_draft_tokens: int) -> float | None:
    """Speedup with this draft length in every round, by the acceptance at each position.

    Exact for the lengths of a run with a fixed length, up to the places where its rounds began; a run with `-k auto`
    drafted further where the draft was sure of itself, so for longer drafts it promises a little too much.

    Returns:
        None if a cost, or the acceptance at one of the positions, is unknown.
    """
    plain, verify = costs.plain_seconds, interpolated(costs.verify_seconds, num_draft_tokens + 1)
    if plain is None or verify is None or len(counts.tested_by_position) < num_draft_tokens:
        return None
    reach, num_tokens = 1.0, 1.0
    for position in range(num_draft_tokens):
        tested = counts.tested_by_position[position]
        if tested < MIN_TESTED:
            return None
        reach *= counts.accepted_by_position[position] / tested
        num_tokens += reach
    drafting = costs.drafting(num_draft_tokens) + reach * costs.catch_up_seconds
    return num_tokens * plain / (drafting + verify + costs.round_seconds)


def interpolated(known: Mapping[int, float], num_tokens: int) -> float | None:
    """v(n), between measured lengths on the line that joins them; None outside them."""
    if num_tokens in known:
        return known[num_tokens]
    below = max((n for n in known if n < num_tokens), default=None)
    above = min((n for n in known if n > num_tokens), default=None)
    if below is None or above is None:
        return None
    share = (num_tokens - below) / (above - below)
    return known[below] * (1 - share) + known[above] * share
