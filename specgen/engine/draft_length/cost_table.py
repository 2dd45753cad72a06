"""Learns what a target pass over n tokens costs, in seconds."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median

from specgen.core.cost_model import interpolated

NUM_SAMPLES = 7
"""Samples kept per length. Their median ignores a busy neighbour and still follows a growing context."""

OPTIMISTIC_SLOPE = 0.05
"""Assumed cost of a further token where nothing is known, as a share of one pass: low, so that lengths get tried."""

SINGLE_HALF_LIFE = 8
"""Passes after which a cost that was measured once counts half: a first pass may be slow, and a high cost prevents its
correction."""

NUM_CONFIRMING = 2
"""Passes of one run before a length is worth saving: a single one may have been slow."""

DISTURBED = 1.6
"""Of two samples that differ by more than this factor, the larger one was disturbed, as first passes are."""

STEEPEST = 2.0
"""A pass measured once costs at most this many times what its tokens would cost at the slope up to a shorter one."""

CREDIBLE_SINGLE = 1.2
"""A pass over one token costs at most this share of one over several, unless many passes say so."""


class CostTable:
    """Seconds of a target pass over n tokens, v(n), learned from the passes of the rounds.

    Measured on a CPU in float32, v(2) = 2.1, v(3) = 3.0 and v(4) = 2.1 single passes: small products run as separate
    matrix-vector products, larger ones as one. So neither a line nor any monotone curve fits.

    An earlier run gives the shape of the table, this run's own passes give its scale: a table that was measured next
    to a busy neighbour must not make every draft look expensive. Once a length is measured again, its earlier value
    counts as one pass.

    Args:
        known: Seconds by number of tokens, from an earlier run.
        padded: Rows that a pass over n tokens really computes; they have one cost.
    """

    def __init__(self, known: Mapping[int, float] | None = None, padded: Callable[[int], int] | None = None) -> None:
        self._padded = padded or (lambda num_tokens: num_tokens)
        self._single = self._padded(1)
        self._samples: dict[int, deque[float]] = {}
        self._num_passes: Counter[int] = Counter()
        self.num_passes = 0
        """Passes of this run."""
        self._confirmed: set[int] = set()
        self._num_single = 0
        """Passes over one token since the last one over several."""
        self._earlier: dict[int, float] = {}
        for num_tokens, seconds in (known or {}).items():
            rows = self._padded(num_tokens)
            self._earlier[rows] = min(seconds, self._earlier.get(rows, seconds))
        self._medians: dict[int, float] = dict(self._earlier)
        self._longest = max(self._medians, default=0)
        self._asked: dict[int, float] = {}
        """What `seconds` returned since the last pass: a policy asks for the same few lengths at every token."""
        self.drift = 1.0
        """Ratio of this run's passes to the earlier run's; 1 without an earlier run."""
        self.is_single_doubtful = False
        """Whether single tokens seemed to cost more than several: they should be measured again."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Adds one pass. The first pass of a length may be slow: the expected value then counts as a sample, too."""
        num_tokens = self._padded(num_tokens)
        samples = self._samples.get(num_tokens)
        if samples is None:
            expected = self._medians.get(num_tokens, seconds)
            first = [expected] if expected < seconds else []
            samples = self._samples[num_tokens] = deque(first, maxlen=NUM_SAMPLES)
        samples.append(seconds)
        self.num_passes += 1
        self._num_passes[num_tokens] += 1
        if self._num_passes[num_tokens] >= NUM_CONFIRMING:
            self._confirmed.add(num_tokens)
        self._num_single = self._num_single + 1 if num_tokens == self._single else 0
        self._medians[num_tokens] = typical(samples)
        self._longest = max(self._longest, num_tokens)
        if num_tokens in self._earlier:
            self._rescale()
        self._limit_single()
        self._limit_unrepeated()
        self._asked.clear()

    def _limit_unrepeated(self) -> None:
        """Limits the costs of lengths that were measured once by those measured more often; they fade, too.

        So do those of an earlier run that this run's passes contradict.

        Seen: first passes over two and four tokens took 2.3 and 7.2 steps, later ones 1.1 and 1.4; but there were none,
        since a draft of another length seemed to pay more, or none at all.
        """
        single = self._medians.get(self._single)
        if single is None:
            return
        weight = trust(self._num_single, SINGLE_HALF_LIFE)
        for num_tokens, samples in self._samples.items():
            if len(samples) == 1 and num_tokens > self._single:
                seconds = min(samples[0], self._largest_credible(num_tokens, single))
                # The longer nothing was drafted, the lower.
                self._medians[num_tokens] = max(seconds * weight, min(seconds, single))
        for num_tokens in self._earlier.keys() - self._samples.keys() - {self._single}:
            # So many single tokens would cost no more.
            if self._earlier[num_tokens] * self.drift > DISTURBED * num_tokens * single:
                self._medians[num_tokens] = max(num_tokens * single * weight, single)

    def _largest_credible(self, num_tokens: int, single: float) -> float:
        """Returns what a pass costs at most, judging by other lengths; `single` is v(1)."""
        # So many single tokens would cost no more, and neither does a longer pass.
        bounds = [num_tokens * single, *(self._medians[n] for n in self._confirmed if n > num_tokens)]
        shorter = max((n for n in self._confirmed if self._single < n < num_tokens), default=None)
        if shorter is not None:
            slope = max((self._medians[shorter] - single) / (shorter - 1), OPTIMISTIC_SLOPE * single)
            bounds.append(self._medians[shorter] + STEEPEST * slope * (num_tokens - shorter))
        return min(bounds)

    def _limit_single(self) -> None:
        """Limits v(1) to the cost of longer passes: a disturbed first pass would make every draft look cheap.

        Seen: a first pass of 1.0 s, then only passes over five tokens of 0.11 s, at 0.84x.
        """
        single = self._single
        longest_credible = CREDIBLE_SINGLE * min((self._medians[n] for n in self._confirmed if n > single), default=inf)
        has_few = self._num_passes[single] < NUM_SAMPLES
        self.is_single_doubtful = has_few and self._medians.get(single, 0.0) > longest_credible
        if self.is_single_doubtful:
            self._medians[single] = longest_credible

    def _rescale(self) -> None:
        measured = self._samples.keys() & self._earlier.keys()
        self.drift = median(self._medians[n] / self._earlier[n] for n in measured)
        for num_tokens in self._earlier.keys() - measured:
            self._medians[num_tokens] = self._earlier[num_tokens] * self.drift

    @property
    def known(self) -> dict[int, float]:
        """Seconds by number of tokens: lengths measured in this run or an earlier one."""
        return dict(sorted(self._medians.items()))

    @property
    def confirmed(self) -> frozenset[int]:
        """Lengths measured often enough in this run to be worth saving."""
        return frozenset(self._confirmed)

    @property
    def longest_trial(self) -> int:
        """Longest draft to try: a pass of unknown cost may be expensive, so it has at most twice the known tokens."""
        return 2 * self._longest - 1

    def is_supported(self, num_tokens: int) -> bool:
        """Returns whether a pass over `num_tokens` tokens was measured."""
        return self._padded(num_tokens) in self._medians

    def seconds(self, num_tokens: int) -> float:
        """Returns the cost of a pass: measured, interpolated, or extrapolated beyond the longest known pass."""
        found = self._asked.get(num_tokens)
        if found is None:
            found = self._asked[num_tokens] = self._seconds(self._padded(num_tokens))
        return found

    def _seconds(self, num_tokens: int) -> float:
        known = self._medians
        inside = interpolated(known, num_tokens)
        if inside is not None or not known:
            return inside or 0.0
        shortest, longest = min(known), self._longest
        if num_tokens < shortest:
            return known[shortest]
        # A further token costs what a token cost on average so far.
        mean = (known[longest] - known[shortest]) / (longest - shortest) if longest > shortest else known[shortest]
        return known[longest] + max(OPTIMISTIC_SLOPE * known[shortest], mean) * (num_tokens - longest)

    def optimistic_seconds(self, num_tokens: int) -> float:
        """Returns `seconds`, except that tokens beyond the longest known pass are nearly free."""
        longest = self._longest
        if num_tokens <= longest or not longest:
            return self.seconds(num_tokens)
        return self._medians[longest] + self._medians[min(self._medians)] * OPTIMISTIC_SLOPE * (num_tokens - longest)


def typical(samples: Sequence[float]) -> float:
    """Returns the median; of two samples that differ much, the smaller one."""
    if len(samples) == 2 and max(samples) > DISTURBED * min(samples):
        return min(samples)
    return median(samples)


def trust(num_passes: int, half_life: int) -> float:
    """Returns the weight of a cost that was measured `num_passes` target passes ago."""
    return float(0.5 ** (num_passes / half_life))
