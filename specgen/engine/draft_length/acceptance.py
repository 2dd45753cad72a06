"""What drafts are worth: chances that their tokens are kept, and what a model's rounds brought. Learns from rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specgen.core.events import Round

NUM_BINS = 10
PRIOR_WEIGHT = 3.0
"""Observations the first guess of an acceptance counts for."""
MEMORY = 0.99
"""Weight an observation keeps after another one came to the same bin: texts change their nature."""
SURPRISE_MEMORY = 0.95
ROUND_STEP = 0.1
"""Weight of the latest round in an average over rounds."""


class RejectionDrift:
    """Refusals against those expected over the last few tokens.

    A drafter can be wrong for a whole text (an edit it would not make): the ratio scales every chance of a refusal.
    """

    def __init__(self) -> None:
        self._refused = self._expected = 0.0

    def corrected(self, chance: float) -> float:
        """A chance of acceptance, scaled by how often drafts were refused of late against what was expected."""
        ratio = (self._refused + 3) / (self._expected + 3)
        return 1 - min((1 - chance) * ratio, 1.0)

    def observe(self, chance: float, was_accepted: bool) -> None:
        """Learn from one tested token and the chance it was given."""
        self._refused = self._refused * SURPRISE_MEMORY + (not was_accepted)
        self._expected = self._expected * SURPRISE_MEMORY + 1 - chance


class Acceptance:
    """Chance that a model's draft token is accepted, given that those before it were, by the drafter's confidence.

    The first guess is the confidence itself; each bin is then corrected by what the target said. A bin forgets slowly;
    see `RejectionDrift` for what a text does to it.
    """

    def __init__(self) -> None:
        self._accepted = [0.0] * NUM_BINS
        self._tested = [0.0] * NUM_BINS
        self.mean = 0.7
        """Over all confidences: the guess for a token not drawn yet. Starts where real pairs are."""
        self._num_tested = 0
        self._surprise = RejectionDrift()

    def estimate(self, confidence: float) -> float:
        """Chance that the target accepts a token drawn with this confidence."""
        return self._surprise.corrected(self._usual(confidence))

    def _usual(self, confidence: float) -> float:
        index = _bin(confidence)
        return (self._accepted[index] + PRIOR_WEIGHT * confidence) / (self._tested[index] + PRIOR_WEIGHT)

    def observe(self, confidence: float, was_accepted: bool) -> None:
        """Learn from one tested token and the confidence it was drawn with."""
        self._surprise.observe(self._usual(confidence), was_accepted)
        index = _bin(confidence)
        self._accepted[index] = self._accepted[index] * MEMORY + was_accepted
        self._tested[index] = self._tested[index] * MEMORY + 1
        self._num_tested += 1
        # A plain mean at first, then a moving one.
        self.mean += (was_accepted - self.mean) / min(self._num_tested + PRIOR_WEIGHT, 1 / (1 - MEMORY))


def _bin(confidence: float) -> int:
    return min(int(confidence * NUM_BINS), NUM_BINS - 1)


@dataclass(frozen=True, slots=True)
class LookupMatch:
    """A draft that costs nothing to make: what followed the same tokens elsewhere.

    Args:
        ids: The tokens, in order.
        matched: Length of the run that occurred before.
        is_disputed: That run went on in different ways.
    """

    ids: Sequence[int]
    matched: int
    is_ambiguous: bool = False


# By length of the match: the first length of each bin, and the first guess of its acceptance.
MATCH_BINS = ((1, 0.2), (2, 0.45), (3, 0.55), (4, 0.65), (6, 0.75), (9, 0.85), (13, 0.93), (20, 0.96))
DISPUTED = 0.6
"""First guess for a run that went on in different ways, relative to one that always went on alike."""
MATCH_PRIOR_WEIGHT = 6.0


class MatchAcceptance:
    """Chance that an offered token is what the target writes, given that those before it were.

    A token that is right makes the match one longer, so the tokens of an offer are trusted more and more. Every offer
    teaches, whether it was drafted or not: what the target wrote tells what would have become of it.
    """

    def __init__(self) -> None:
        self._accepted = [
            [chance * factor * MATCH_PRIOR_WEIGHT for _, chance in MATCH_BINS] for factor in (1, DISPUTED)
        ]
        self._tested = [[MATCH_PRIOR_WEIGHT] * len(MATCH_BINS) for _ in range(2)]
        self._surprise = RejectionDrift()

    def chances(self, match: LookupMatch) -> list[float]:
        """Chance of each token of an offer."""
        return [self._surprise.corrected(self._usual(match, position)) for position in range(len(match.ids))]

    def observe(self, match: LookupMatch, written: Sequence[int]) -> None:
        """Learn from what the target wrote where an offer was made."""
        for position, (offered, token) in enumerate(zip(match.ids, written, strict=False)):
            self._surprise.observe(self._usual(match, position), offered == token)
            accepted, tested, index = self._bin(match, position)
            accepted[index] = accepted[index] * MEMORY + (offered == token)
            tested[index] = tested[index] * MEMORY + 1
            if offered != token:
                break

    def _usual(self, match: LookupMatch, position: int) -> float:
        accepted, tested, index = self._bin(match, position)
        return accepted[index] / tested[index]

    def _bin(self, match: LookupMatch, position: int) -> tuple[list[float], list[float], int]:
        """Only an offer's first token is disputed: the way that was chosen there is one."""
        length = match.matched + position
        index = max(i for i, (first, _) in enumerate(MATCH_BINS) if first <= length)
        kind = int(match.is_ambiguous and position == 0)
        return self._accepted[kind], self._tested[kind], index


class RecentRounds:
    """Tokens and seconds of a round, on average: a plain mean at first, then a moving one.

    So the first round's luck does not last. What a round brings per second is a ratio of these two, as a text's rate is
    one of sums; a mean of ratios would favour the lucky rounds.

    Args:
        step: Weight of the latest round.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self.num_rounds = 0
        self.tokens = self.seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add a round."""
        self.num_rounds += 1
        step = max(self._step, 1 / self.num_rounds)
        self.tokens += (num_tokens - self.tokens) * step
        self.seconds += (seconds - self.seconds) * step


class DraftModelStats:
    """What a round that the draft model drafted brought and cost, on average over the recent ones."""

    def __init__(self) -> None:
        self.num_missed = 0
        """Tokens written since the model last drafted: it reads them first."""
        self.seconds_missed = 0.0
        """What reading one of them costs."""
        self._rounds = RecentRounds(ROUND_STEP)
        """Of these only the accepted tokens count."""

    def gain(self, rate: float, plain_seconds: float) -> float | None:
        """Tokens beyond those of plain decoding, less those lost in the time it takes more; None: not seen yet."""
        rounds = self._rounds
        return rounds.tokens - rate * (rounds.seconds - plain_seconds) if rounds.num_rounds else None

    def observe(self, round_: Round, draft_seconds: float) -> None:
        """Add a round of the model's; `draft_seconds` is what its tokens cost without the reading."""
        if self.num_missed:
            missed = max(round_.draft_seconds - draft_seconds, 0.0) / self.num_missed
            self.seconds_missed += (missed - self.seconds_missed) * ROUND_STEP
        self.num_missed = 0
        self._rounds.observe(round_.num_accepted, draft_seconds + round_.verify_seconds)
