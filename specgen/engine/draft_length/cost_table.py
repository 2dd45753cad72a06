"""What a pass over n tokens costs: seconds in, a table out. A table and not a line, since real machines are no line."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from statistics import median

NUM_SAMPLES = 7
"""Samples kept per length. Their median shrugs off a busy neighbour and still follows a growing context."""

OPTIMISTIC_SLOPE = 0.05
"""Cost of a further token, as a share of one pass, where nothing is known: hopeful, so that lengths get tried."""

HALF_LIFE = 16
"""Target passes after which an earlier figure of a draft token's cost, not measured again, is believed half."""

NUM_CONFIRMING = 2
"""Passes of one run that make a length worth remembering: a single one may have been a slow one."""


class CostTable:
    """Seconds of a target pass over n tokens, v(n), learned from the passes that happen anyway.

    Measured on a CPU in float32, v(2) = 2.1, v(3) = 3.0 and v(4) = 2.1 single passes: small products run as separate
    matrix-vector products, larger ones as one. So neither a line nor any monotone curve will do.

    What an earlier run found gives the shape of the table, and this run's own passes its scale: a table that was
    measured beside a busy neighbour must not make every draft look dear. Of a length seen again the earlier figure
    counts as one pass.

    Args:
        known: Seconds by number of tokens, from an earlier run.
    """

    def __init__(self, known: Mapping[int, float] | None = None) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._num_passes: Counter[int] = Counter()
        self._earlier: dict[int, float] = dict(known or {})
        self._medians: dict[int, float] = dict(self._earlier)
        self.drift = 1.0
        """How much slower passes are than the earlier run found; 1 without one."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add one pass. The first of a length may be a slow one: what was expected then counts as a sample, too."""
        samples = self._samples.get(num_tokens)
        if samples is None:
            expected = self.seconds(num_tokens) if self._medians else seconds
            first = [expected] if expected < seconds else []
            samples = self._samples[num_tokens] = deque(first, maxlen=NUM_SAMPLES)
        samples.append(seconds)
        self._num_passes[num_tokens] += 1
        self._medians[num_tokens] = median(samples)
        if num_tokens in self._earlier:
            self._rescale()

    def _rescale(self) -> None:
        seen = self._samples.keys() & self._earlier.keys()
        self.drift = median(self._medians[n] / self._earlier[n] for n in seen)
        for num_tokens in self._earlier.keys() - seen:
            self._medians[num_tokens] = self._earlier[num_tokens] * self.drift

    @property
    def known(self) -> dict[int, float]:
        """Seconds by number of tokens: lengths measured in this run or an earlier one."""
        return dict(sorted(self._medians.items()))

    @property
    def confirmed(self) -> frozenset[int]:
        """Lengths measured often enough in this run to be worth remembering."""
        return frozenset(n for n, num_passes in self._num_passes.items() if num_passes >= NUM_CONFIRMING)

    @property
    def num_passes(self) -> int:
        """Passes of this run."""
        return self._num_passes.total()

    def is_supported(self, num_tokens: int) -> bool:
        """Whether a pass over so many tokens was timed."""
        return num_tokens in self._medians

    def seconds(self, num_tokens: int) -> float:
        """Cost of a pass: measured, or interpolated between measured lengths, or hoped for beyond them."""
        found = self._medians.get(num_tokens)
        if found is not None:
            return found
        below = max((n for n in self._medians if n < num_tokens), default=None)
        above = min((n for n in self._medians if n > num_tokens), default=None)
        if below is None:
            return 0.0 if above is None else self._medians[above]
        if above is None:
            return self._medians[below] + self._slope_behind(below) * (num_tokens - below)
        share = (num_tokens - below) / (above - below)
        return self._medians[below] * (1 - share) + self._medians[above] * share

    def optimistic_seconds(self, num_tokens: int) -> float:
        """As `seconds`, but where nothing is known every further token is next to free."""
        longest = max(self._medians, default=0)
        if num_tokens <= longest or not longest:
            return self.seconds(num_tokens)
        return self._medians[longest] + self._medians[min(self._medians)] * OPTIMISTIC_SLOPE * (num_tokens - longest)

    def _slope_behind(self, longest: int) -> float:
        """Of a token beyond the longest known pass: what a token cost on average up to there."""
        shortest = min(self._medians)
        one = self._medians[shortest]
        mean = (self._medians[longest] - one) / (longest - shortest) if longest > shortest else one
        return max(OPTIMISTIC_SLOPE * one, mean)


class DraftCost:
    """Seconds of one draft token, from rounds in which the drafter had little else to do.

    An earlier figure that is too high would keep the draft from being tried, and itself from being corrected: until
    this run has measured one of its own, it sinks with every pass of the target.

    Args:
        seconds: What an earlier run found.
        costs: The target's table: where its passes have become slower, an earlier figure is taken to have, too.
    """

    def __init__(self, seconds: float | None = None, costs: CostTable | None = None) -> None:
        self._samples: deque[float] = deque(maxlen=NUM_SAMPLES)
        self._earlier = seconds
        self._costs = costs or CostTable()
        self._first_drift, self._first_pass = self._costs.drift, self._costs.num_passes
        self._num_rounds = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add one round's draft. What an earlier run found counts as a round."""
        if not self._samples and self._earlier is not None:
            self._samples.append(self.seconds)
        self._samples.append(seconds / num_tokens)
        self._num_rounds += 1

    @property
    def is_supported(self) -> bool:
        """Whether a drafted token was timed, now or in an earlier run."""
        return bool(self._samples) or self._earlier is not None

    @property
    def is_confirmed(self) -> bool:
        """Whether this run measured it often enough to be worth remembering."""
        return self._num_rounds >= NUM_CONFIRMING

    @property
    def seconds(self) -> float:
        """Cost of a token; 0 while nothing is known, so that drafting gets tried."""
        if self._samples:
            return median(self._samples)
        trust: float = 0.5 ** ((self._costs.num_passes - self._first_pass) / HALF_LIFE)
        return (self._earlier or 0.0) * self._costs.drift / self._first_drift * trust
