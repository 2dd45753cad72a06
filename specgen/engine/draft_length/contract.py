"""Defines the interface of draft-length policies, for the drafters and the loop."""

from __future__ import annotations

from typing import Protocol

from specgen.core.events import Prefill, Round
from specgen.engine.draft_length.acceptance import LookupMatch


class LengthPolicy(Protocol):
    """Decides the length of each draft."""

    uses_confidence: bool
    """Whether to call `on_token`: for a greedy draft the confidence costs a pass over the vocabulary."""

    def start_text(self, prefill: Prefill) -> None:
        """Prepares for a new text, whose prompt was just read."""

    def start_round(self, num_replayed: int = 0) -> None:
        """Prepares for a new round.

        Args:
            num_replayed: Tokens that the target feeds again in this round's pass, whatever is drafted.
        """

    def should_draft(self) -> bool:
        """Decides whether to draft one more token."""

    def on_token(self, confidence: float, num_passes: int = 1) -> None:
        """Notes that a token was drafted.

        A drafter that computed a token which it can't propose reports a confidence of 0 and ends the draft.

        Args:
            confidence: Of the drafter, 0 to 1.
            num_passes: Passes of the draft model that the token took, without those that `on_pass` noted. A pass may
                give several tokens of the target's.
        """

    def on_pass(self, confidence: float) -> None:
        """Notes a pass that gave no further token: what a draft of text wrote changed the last one, or is incomplete.

        Args:
            confidence: Of what was written in it. That of the next token contains it.
        """

    def tokens_to_take(self, match: LookupMatch, *, has_draft_model: bool) -> int:
        """Decides how many tokens of a lookup match to propose; they cost only their verification.

        Args:
            match: The tokens that followed the same text before.
            has_draft_model: Whether a draft model drafts the round if the answer is 0; otherwise nothing is drafted.
        """

    def observe(self, round_: Round) -> None:
        """Learns from a finished round."""
