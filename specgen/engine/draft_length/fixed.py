"""Always the same draft length."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from specgen.core.events import Round
from specgen.engine.draft_length.acceptance import LookupMatch, MatchAcceptance

NUM_RECENT = 10
"""Rounds an average is taken over, roughly."""


FIRST_GUESS = 2.0
"""Tokens a model's draft of fixed length is expected to bring before any was seen."""


SHORTEST_MATCH = 2
"""A single repeated token says too little for a draft whose cost nobody weighs."""


class FixedLength:
    """Always the same length; the loop's limit is the only bound. Decides by counts alone, so a seed repeats a text."""

    uses_confidence = False

    def __init__(self) -> None:
        self._matches = MatchAcceptance()
        self._offer: LookupMatch | None = None
        self._num_accepted = FIRST_GUESS
        """Tokens kept of a model's draft, over the recent ones."""

    def start_round(self) -> None:
        self._offer = None

    def should_draft(self) -> bool:
        return True

    def on_token(self, confidence: float) -> None:
        """Nothing to note."""

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        self._offer = match
        if has_draft_model:
            expected = sum(accumulate(self._matches.chances(match), mul))
            return len(match.ids) if expected >= self._num_accepted else 0
        return len(match.ids) if match.matched >= SHORTEST_MATCH else 0

    def observe(self, round_: Round) -> None:
        if self._offer is not None:
            self._matches.observe(self._offer, round_.token_ids)
        if round_.source == "model":
            self._num_accepted += (round_.num_accepted - self._num_accepted) / NUM_RECENT
