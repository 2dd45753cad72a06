"""What decides how long a draft gets, seen from the drafters and the loop."""

from __future__ import annotations

from typing import Protocol

from specgen.core.events import Round
from specgen.engine.draft_length.acceptance import LookupMatch


class LengthPolicy(Protocol):
    """Decides the length of each draft."""

    uses_confidence: bool
    """Whether `on_token` is wanted: for a greedy draft the confidence costs a pass over the vocabulary."""

    def start_round(self) -> None:
        """A round begins."""

    def should_draft(self) -> bool:
        """Whether to draft one more token."""

    def on_token(self, confidence: float) -> None:
        """A token was drawn and is kept; `confidence`, 0 to 1, is how sure the drafter was of it."""

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        """A draft is at hand that costs nothing but its verification: how many of its tokens to propose.

        Args:
            offer: The draft.
            has_rival: 0 leaves the round to a draft model, which may do better; otherwise to plain decoding.
        """

    def observe(self, round_: Round) -> None:
        """Learn from a finished round."""
