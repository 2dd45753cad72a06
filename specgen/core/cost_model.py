"""Predicts speedups from the measured costs of passes: of a run's rounds, and of fixed draft lengths.

Only costs are modelled. The drafted and accepted tokens of a run are counted, so its prediction does not assume that
draft tokens are accepted independently of each other, which they are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from specgen.core.metrics import Counts

MAX_DISAGREEMENT = 1.5
"""If measured and predicted speedup differ by more than this factor, one of them was disturbed."""
MIN_TESTED = 4
"""Draft tokens tested at a position before its acceptance is used."""
NUM_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class PassCosts:
    """Costs of the parts of a round, in seconds.

    Args:
        verify_seconds: v(n): a pass of the target over n tokens, by n.
        draft_seconds: A pass of the draft model, which gives a token.
        is_per_round: `draft_seconds` is a whole proposal, as in lookup.
        catch_up_seconds: Extra cost of the first draft token after a draft that was accepted as a whole: the draft
            model has not read its own last token.
        round_seconds: Accepting, cutting and rewinding, per round.
        plain_round_seconds: The same, for the baseline.
        tree_pass_seconds: A pass of the draft model over n tokens of a tree, by n; empty: `draft_seconds` each.
        reading_seconds: Additional cost of a draft's first pass if it reads n tokens of the text, by n; empty:
            `catch_up_seconds` for each one but the last.
        cold_seconds: Additional cost of a draft's first pass. It comes after a pass of the target, so the processor's
            caches no longer hold the draft's weights.
    """

    verify_seconds: Mapping[int, float]
    draft_seconds: float
    is_per_round: bool = False
    catch_up_seconds: float = 0.0
    round_seconds: float = 0.0
    plain_round_seconds: float = 0.0
    tree_pass_seconds: Mapping[int, float] = field(default_factory=dict)
    reading_seconds: Mapping[int, float] = field(default_factory=dict)
    cold_seconds: float = 0.0

    @property
    def plain_seconds(self) -> float | None:
        """Cost of a token of the baseline."""
        one = interpolated(self.verify_seconds, 1)
        return None if one is None else one + self.plain_round_seconds


def interpolated(known: Mapping[int, float], num_tokens: int) -> float | None:
    """Interpolates v(n) linearly between measured lengths; None outside them."""
    if num_tokens in known:
        return known[num_tokens]
    below = max((n for n in known if n < num_tokens), default=None)
    above = min((n for n in known if n > num_tokens), default=None)
    if below is None or above is None:
        return None
    share = (num_tokens - below) / (above - below)
    return known[below] * (1 - share) + known[above] * share


def extrapolated(known: Mapping[int, float], num_tokens: int) -> float:
    """Interpolates as `interpolated`; beyond the longest length, a further token costs what it costs on average."""
    found, shortest, longest = interpolated(known, num_tokens), min(known), max(known)
    if found is not None:
        return found
    slope = (known[longest] - known[shortest]) / (longest - shortest) if longest > shortest else 0.0
    return known[longest] + slope * (num_tokens - longest)


def expected_speedup(acceptance: Sequence[float], costs: PassCosts) -> float | None:
    """Predicts the speedup of a fixed draft length from the acceptance at each of its positions.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), Theorem 3.8, with the measured v(k + 1) in place of v(1) and an
    acceptance per position.

    Args:
        acceptance: At each position, given that the tokens before it were accepted; its length is the draft length.
        costs: Of the passes. If one is unknown, the result is None.
    """
    reach, num_tokens = 1.0, 1.0
    for probability in acceptance:
        reach *= probability
        num_tokens += reach
    return round_speedup(num_tokens, len(acceptance), costs, full_share=reach)


def round_speedup(
    tokens_per_round: float, num_draft_tokens: int, costs: PassCosts, *, full_share: float = 0.0
) -> float | None:
    """Predicts the speedup of a fixed draft length from the tokens per round; None if a cost is unknown.

    Args:
        tokens_per_round: Measured or expected, the target's own token included.
        num_draft_tokens: The draft length.
        costs: Of the passes.
        full_share: Share of the rounds whose draft is accepted as a whole, so that the next one has to catch up.
    """
    plain, verify = costs.plain_seconds, interpolated(costs.verify_seconds, num_draft_tokens + 1)
    if not plain or not verify:
        return None
    drafting = costs.draft_seconds * (1 if costs.is_per_round else num_draft_tokens) + costs.cold_seconds
    seconds = drafting + full_share * costs.catch_up_seconds + verify + costs.round_seconds
    return tokens_per_round * plain / seconds


def break_even_alpha(num_draft_tokens: int, costs: PassCosts) -> float | None:
    """Returns the α at which drafts of this length start to pay; None if they never do."""

    def speedup(alpha: float) -> float:
        return expected_speedup([alpha] * num_draft_tokens, costs) or 0.0

    if speedup(1.0) <= 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if speedup(middle) >= 1 else (middle, high)
    return high


def best_draft_length(alpha: float, costs: PassCosts) -> tuple[int, float]:
    """Returns the draft length with the largest speedup at this α, and that speedup; 0 and 1 if no length pays."""
    longest = max(costs.verify_seconds, default=1) - 1
    speedups = [(expected_speedup([alpha] * k, costs) or 0.0, k) for k in range(1, longest + 1)]
    speedup, k = max(speedups, default=(0.0, 0))
    return (k, speedup) if speedup > 1 else (0, 1.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Speedups that the measured costs predict for a run.

    Args:
        speedup: At the draft lengths of the run; None if a cost is unknown.
        by_length: At fixed draft lengths, as far as the run has data for them.
    """

    speedup: float | None
    by_length: Mapping[int, float]


def forecast(counts: Counts, costs: PassCosts) -> Forecast:
    """Predicts the speedup of a run's rounds, and of other draft lengths.

    The predictions by length are exact for a run with a fixed length, up to the positions where its rounds began. A
    run with `-k auto` drafted further where the draft was confident, so they are slightly too high for longer drafts.
    If drafts branched, there are none by length: such rounds do not show how often the best token is accepted.
    """
    by_length: dict[int, float] = {}
    acceptance: list[float] = []
    predicted = predicted_speedup(counts, costs)
    num_drafting = counts.num_rounds - counts.num_plain_rounds
    if counts.num_extra_passes > 0 and num_drafting:
        # Extra passes are those of text drafts, and do not depend much on the length.
        extra = costs.draft_seconds * counts.num_extra_passes / num_drafting
        costs = replace(costs, round_seconds=costs.round_seconds + extra)
    for accepted, tested in zip(counts.accepted_by_position, counts.tested_by_position, strict=True):
        if tested < MIN_TESTED or counts.num_tree_rounds:
            break
        acceptance.append(accepted / tested)
        speedup = expected_speedup(acceptance, costs)
        if speedup is None:
            break
        by_length[len(acceptance)] = speedup
    return Forecast(predicted, by_length)


def predicted_speedup(counts: Counts, costs: PassCosts) -> float | None:
    """Predicts the speedup of a run's rounds from the costs of passes, independently of the run's own clock.

    A token of the baseline costs v(1). A round costs its draft, v(tokens fed) and the work around them. A draft after
    rounds without one first reads the missed tokens; its time is taken as measured. Rounds of warm-up are left out, as
    from the measured speed. If there are no others, nothing is predicted: the measured speed contains recordings then.
    """
    plain = costs.plain_seconds
    if plain is None or not counts.num_rounds or counts.is_all_warmup:
        return None
    timed = counts.timed
    seconds = timed.num_rounds * costs.round_seconds
    for num_fed, num_passes in enumerate(counts.fed_histogram):
        verify = interpolated(costs.verify_seconds, num_fed) if num_passes else 0.0
        if verify is None:
            return None
        seconds += num_passes * verify
    if costs.is_per_round:
        seconds += timed.num_rounds * costs.draft_seconds
    else:
        # Lookup drafts next to a model's take no measurable time.
        seconds += _drafting_seconds(counts, costs) + counts.resumed_seconds
    return timed.num_tokens * plain / seconds if seconds else None


def _drafting_seconds(counts: Counts, costs: PassCosts) -> float:
    """Returns the time of the draft model's passes, but for drafts after a round without one."""
    seconds = costs.draft_seconds * (counts.num_draft_passes - sum(counts.tree_pass_histogram))
    seconds += _sum_over(counts.tree_pass_histogram, costs.tree_pass_seconds or {1: costs.draft_seconds})
    seconds += _sum_over(counts.reading_histogram, costs.reading_seconds or {1: 0.0, 2: costs.catch_up_seconds})
    seconds += costs.cold_seconds * counts.num_cold_drafts
    return seconds + costs.catch_up_seconds * max(counts.num_whole_drafts - 1, 0)


def _sum_over(histogram: Sequence[int], seconds: Mapping[int, float]) -> float:
    return sum(num * extrapolated(seconds, n) for n, num in enumerate(histogram) if num)


def is_unlike(measured: float | None, predicted: float | None) -> bool:
    """Returns whether one of two speedups was probably disturbed; False if one is unknown."""
    if not measured or not predicted:
        return False
    return not 1 / MAX_DISAGREEMENT < measured / predicted < MAX_DISAGREEMENT


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Holds the costs of passes in seconds, measured outside of the runs.

    Args:
        verify_seconds: v(n): a pass of the target over n tokens after a prompt, by n.
        draft_seconds: One draft token, by the draft's label; for lookup, one proposal.
        tree_pass_seconds: A pass of a draft model over n tokens of a tree, by the draft's label and n.
        reading_seconds: Additional cost of a draft's first pass if it reads n tokens of the text, likewise.
        cold_seconds: Additional cost of a draft's first pass after one of the target, by the draft's label.
    """

    verify_seconds: Mapping[int, float]
    draft_seconds: Mapping[str, float]
    tree_pass_seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    reading_seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    cold_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def catch_up_seconds(self) -> dict[str, float]:
        """Returns the additional cost of a draft's first pass if it reads one more token, by the draft's label."""
        return {label: self.reading_seconds.get(label, {}).get(2, 0.0) for label in self.draft_seconds}

    def verify(self, num_tokens: int) -> float | None:
        """Returns v(n), interpolated between measured lengths; None outside them."""
        return interpolated(self.verify_seconds, num_tokens)

    def of(self, label: str) -> PassCosts:
        """Returns the costs of a round with one of the drafts."""
        # Lookup proposes all its tokens at once.
        return PassCosts(
            self.verify_seconds,
            self.draft_seconds.get(label, 0.0),
            is_per_round=label == "lookup",
            catch_up_seconds=self.catch_up_seconds.get(label, 0.0),
            tree_pass_seconds=self.tree_pass_seconds.get(label, {}),
            reading_seconds=self.reading_seconds.get(label, {}),
            cold_seconds=self.cold_seconds.get(label, 0.0),
        )
