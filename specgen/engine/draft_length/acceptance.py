"""Estimates the probability that draft tokens are accepted, and learns it from the rounds.

Model drafts are estimated by the drafter's confidence, lookup drafts by the length of the match.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

NUM_CONFIDENCE_BINS = 10
CONFIDENCE_PRIOR_WEIGHT = 3.0
"""Observations that the initial estimate counts for."""
INITIAL_MEAN_ACCEPTANCE = 0.7
"""Measured pairs start near this value."""
INITIAL_MEAN_WEIGHT = 7.0
"""Tested tokens that this value counts for."""
NUM_TESTED_EARLIER = 30
"""Tested tokens that a mean of earlier runs stands for, at least."""
INITIAL_CORRELATION, CORRELATION_PRIOR_PAIRS = 1 / 13, 150
"""Correlation of the tokens of a text before texts are known, and the pairs of tokens that it counts for."""
SMALLEST_CORRELATION, LARGEST_CORRELATION = 1 / 16, 1 / 5
TEXT_DECAY = 0.995
"""Each tested token lowers the weight of earlier ones of the same text by this factor."""
BIN_DECAY = 0.99
"""Each observation lowers the weight of earlier ones in its bin by this factor: texts change their nature."""
DRIFT_DECAY = 0.95
DRIFT_PRIOR_WEIGHT = 3.0
"""The drift ratio starts as if this many rejections had been expected, and had occurred."""


class RejectionDrift:
    """Scales rejection probabilities by the recent ratio of actual to expected rejections.

    A drafter can be wrong for a whole text, for example about an edit that it would not make.
    """

    def __init__(self) -> None:
        self._num_rejected = self._num_expected = 0.0

    def corrected(self, acceptance: float) -> float:
        """Returns an acceptance probability after scaling its complement by the ratio."""
        ratio = (self._num_rejected + DRIFT_PRIOR_WEIGHT) / (self._num_expected + DRIFT_PRIOR_WEIGHT)
        return 1 - min((1 - acceptance) * ratio, 1.0)

    def observe(self, acceptance: float, was_accepted: bool) -> None:
        """Learns from one tested token and its estimated acceptance."""
        self._num_rejected = self._num_rejected * DRIFT_DECAY + (not was_accepted)
        self._num_expected = self._num_expected * DRIFT_DECAY + 1 - acceptance


class TextVariation:
    """Estimates by how much texts differ in their acceptance, from the accepted and tested tokens of each.

    The correlation is estimated by the method of moments, as in Kleinman 1973 (JASA 68, p. 46).
    """

    def __init__(self) -> None:
        self._deviation = self._num_tested = self._num_pairs = 0.0

    def observe(self, num_accepted: int, num_tested: int, mean: float) -> None:
        """Adds a text."""
        mean = min(max(mean, 0.05), 0.95)
        self._deviation += (num_accepted - mean * num_tested) ** 2 / (mean * (1 - mean)) - num_tested
        self._num_tested += num_tested
        self._num_pairs += num_tested * (num_tested - 1)

    @property
    def correlation(self) -> float:
        """Of two tokens of a text: 0 if all texts are alike."""
        # Texts deviate by as much as chance makes them, or by less.
        found = max(self._deviation, -0.5 * self._num_tested) + INITIAL_CORRELATION * CORRELATION_PRIOR_PAIRS
        share = found / (self._num_pairs + CORRELATION_PRIOR_PAIRS)
        return min(max(share, SMALLEST_CORRELATION), LARGEST_CORRELATION)


class MeanAcceptance:
    """Averages the acceptance of drafted tokens over all texts, and over the present text, which counts more.

    Texts differ: with SmolLM2-135M for Qwen2.5-Coder-1.5B, 21 to 76 % were accepted. A mean over all texts would draft
    through one of 64 tokens before it noticed that drafting does not pay there. How much that mean counts in a new text
    depends on how well it is known, and on how much texts differ.

    Args:
        expected: From earlier runs.
    """

    def __init__(self, expected: float | None = None) -> None:
        self._overall = self._before = INITIAL_MEAN_ACCEPTANCE if expected is None else expected
        self._num_tested = 0 if expected is None else NUM_TESTED_EARLIER
        self._text_accepted = self._text_tested = 0.0
        self._num_text_accepted = self._num_text_tested = 0
        self._variation = TextVariation()
        self._prior_weight = self._weight_of_earlier()

    @property
    def value(self) -> float:
        """The estimate for the present text."""
        expected = self._prior_weight * self._before
        return (self._text_accepted + expected) / (self._text_tested + self._prior_weight)

    def start_text(self) -> None:
        """Forgets what is known of the last text only."""
        self._variation.observe(self._num_text_accepted, self._num_text_tested, self._overall)
        self._before = self._overall
        self._text_accepted = self._text_tested = 0.0
        self._num_text_accepted = self._num_text_tested = 0
        self._prior_weight = self._weight_of_earlier()

    def observe(self, was_accepted: bool) -> None:
        """Adds a tested token."""
        self._num_tested += 1
        # A plain mean at first, then a moving one.
        weight = 1 / min(self._num_tested + CONFIDENCE_PRIOR_WEIGHT, 1 / (1 - BIN_DECAY))
        self._overall += (was_accepted - self._overall) * weight
        self._text_accepted = self._text_accepted * TEXT_DECAY + was_accepted
        self._text_tested = self._text_tested * TEXT_DECAY + 1
        self._num_text_accepted += was_accepted
        self._num_text_tested += 1

    def _weight_of_earlier(self) -> float:
        """Returns the tested tokens that the mean over all texts counts for in a new one."""
        num_tested = min(self._num_tested, 1 / (1 - BIN_DECAY))
        return 1 / (self._variation.correlation + 1 / (INITIAL_MEAN_WEIGHT + num_tested))


class AcceptanceByConfidence:
    """Estimates the acceptance of a model's draft token, given that those before it were accepted.

    The initial estimate is the drafter's confidence itself; each confidence bin then learns from the target's
    verdicts.

    Args:
        expected: Mean acceptance in earlier runs.
    """

    def __init__(self, expected: float | None = None) -> None:
        self._accepted = [0.0] * NUM_CONFIDENCE_BINS
        self._tested = [0.0] * NUM_CONFIDENCE_BINS
        self.mean = MeanAcceptance(expected)
        """Over all confidences: the estimate for a token that is not drafted yet."""
        self._drift = RejectionDrift()

    def estimate(self, confidence: float) -> float:
        """Returns the probability that the target accepts a token drafted with this confidence."""
        return self._drift.corrected(self._of_bin(confidence))

    def observe(self, confidence: float, was_accepted: bool) -> None:
        """Learns from one tested token and the confidence it was drafted with."""
        self._drift.observe(self._of_bin(confidence), was_accepted)
        index = _confidence_bin(confidence)
        self._accepted[index] = self._accepted[index] * BIN_DECAY + was_accepted
        self._tested[index] = self._tested[index] * BIN_DECAY + 1
        self.mean.observe(was_accepted)

    def _of_bin(self, confidence: float) -> float:
        index = _confidence_bin(confidence)
        prior = CONFIDENCE_PRIOR_WEIGHT * confidence
        return (self._accepted[index] + prior) / (self._tested[index] + CONFIDENCE_PRIOR_WEIGHT)


def _confidence_bin(confidence: float) -> int:
    return min(int(confidence * NUM_CONFIDENCE_BINS), NUM_CONFIDENCE_BINS - 1)


@dataclass(frozen=True, slots=True)
class LookupMatch:
    """A draft from repeated text: the tokens that followed the longest earlier occurrence of the text's end.

    Args:
        ids: The tokens, in order.
        num_matched: Length of the repeated text.
        is_ambiguous: The repeated text was followed by different tokens in different places.
    """

    ids: Sequence[int]
    num_matched: int
    is_ambiguous: bool = False


MATCH_BINS = ((1, 0.2), (2, 0.45), (3, 0.55), (4, 0.65), (6, 0.75), (9, 0.85), (13, 0.93), (20, 0.96))
"""By match length: the shortest of each bin, and the initial estimate of its acceptance."""
_SHORTEST_MATCHES = [shortest for shortest, _ in MATCH_BINS]
AMBIGUOUS_FACTOR = 0.6
"""Initial estimate for an ambiguous match, relative to an unambiguous one."""
MATCH_PRIOR_WEIGHT = 6.0


class AcceptanceByMatch:
    """Estimates the acceptance of a lookup draft's token, given that those before it were accepted.

    An accepted token makes the match one longer, so later tokens of a draft have higher estimates. Every match is
    observed, drafted or not: the target's tokens show whether it was right.
    """

    def __init__(self) -> None:
        self._accepted = [
            [acceptance * factor * MATCH_PRIOR_WEIGHT for _, acceptance in MATCH_BINS]
            for factor in (1, AMBIGUOUS_FACTOR)
        ]
        self._tested = [[MATCH_PRIOR_WEIGHT] * len(MATCH_BINS) for _ in range(2)]
        self._drift = RejectionDrift()

    def start_text(self) -> None:
        """Forgets how right the matches of the last text were: a copy says nothing about a free text after it."""
        self._drift = RejectionDrift()

    def estimates(self, match: LookupMatch) -> list[float]:
        """Returns the acceptance probability of each token of a match."""
        return [self._drift.corrected(self._of_bin(match, position)) for position in range(len(match.ids))]

    def observe(self, match: LookupMatch, written: Sequence[int]) -> None:
        """Learns from the tokens that the target wrote where the match was found."""
        for position, (proposed, token) in enumerate(zip(match.ids, written, strict=False)):
            was_right = proposed == token
            self._drift.observe(self._of_bin(match, position), was_right)
            accepted, tested, index = self._bin(match, position)
            accepted[index] = accepted[index] * BIN_DECAY + was_right
            tested[index] = tested[index] * BIN_DECAY + 1
            if not was_right:
                break

    def _of_bin(self, match: LookupMatch, position: int) -> float:
        accepted, tested, index = self._bin(match, position)
        return accepted[index] / tested[index]

    def _bin(self, match: LookupMatch, position: int) -> tuple[list[float], list[float], int]:
        """Returns the counts and the bin of a token. Only the first token of a match can be ambiguous."""
        length = match.num_matched + position
        index = bisect_right(_SHORTEST_MATCHES, length) - 1
        row = int(match.is_ambiguous and position == 0)
        return self._accepted[row], self._tested[row], index
