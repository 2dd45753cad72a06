"""Drafts a constant number of tokens (`-k N`)."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import AcceptanceByMatch, LookupMatch

ACCEPTED_STEP = 0.1
"""Weight of the latest round in the mean number of accepted tokens."""
INITIAL_NUM_ACCEPTED = 2.0
"""Assumed accepted tokens of a model's draft before the first round."""
SHORTEST_MATCH = 2
"""A single repeated token is too weak a match, as its cost is not weighed here."""

MAX_REPLAYED = 8
"""Tokens to feed again from which a round drafts nothing: nothing is rejected then, so the cache keeps them."""


class FixedLength:
    """Drafts up to the loop's limit, unless too many tokens wait to be fed again.

    Decides by counts alone, so a seed repeats a text.
    """

    uses_confidence = False

    def __init__(self) -> None:
        self._acceptance = AcceptanceByMatch()
        self._match: LookupMatch | None = None
        self._is_replay_due = False
        self._num_accepted = INITIAL_NUM_ACCEPTED
        """Accepted tokens of a model's draft, averaged over the recent ones."""

    def start_text(self, prefill: Prefill) -> None:  # noqa: ARG002
        self._acceptance.start_text()

    def start_round(self, num_replayed: int = 0) -> None:
        self._match = None
        self._is_replay_due = num_replayed >= MAX_REPLAYED

    def should_draft(self) -> bool:
        return not self._is_replay_due

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        """Does nothing."""

    def on_pass(self, confidence: float) -> None:
        """Does nothing."""

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        self._match = match
        if self._is_replay_due:
            return 0
        if has_draft_model:
            expected = sum(accumulate(self._acceptance.estimates(match), mul))
            return len(match.ids) if expected >= self._num_accepted else 0
        return len(match.ids) if match.num_matched >= SHORTEST_MATCH else 0

    def observe(self, round_: Round) -> None:
        if self._match is not None:
            self._acceptance.observe(self._match, round_.token_ids)
        if round_.source == "model":
            self._num_accepted += (round_.num_accepted - self._num_accepted) * ACCEPTED_STEP
